"""Embeddings: how sentence-transformers says to pool and project, and that it is done so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stepwell.models.encoder import EncoderConfig, load_encoder
from stepwell.models.encoder.pooling import Pooling
from stepwell.models.encoder.sentences import read_sentences
from stepwell.models.fields import ConfigError

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}


def describe(directory: Path, modules: Any, pooling: Any = None) -> Path:
    (directory / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (directory / "1_Pooling").mkdir(exist_ok=True)
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return directory


@pytest.mark.parametrize(
    ("modules", "pooling", "expected"),
    [
        ([TRANSFORMER], None, Pooling("mean")),
        ([TRANSFORMER, POOLING], MEAN, Pooling("mean")),
        ([TRANSFORMER, POOLING], CLS, Pooling("cls")),
        ([TRANSFORMER, POOLING], {"pooling_mode": "cls"}, Pooling("cls")),
        ([TRANSFORMER, POOLING, NORMALIZE], CLS, Pooling("cls", normalise=True)),
        ([TRANSFORMER, POOLING, NORMALIZE], MEAN, Pooling("mean", normalise=True)),
    ],
)
def test_the_layout_of_sentence_transformers(tmp_path: Path, modules: Any, pooling: Any, expected: Pooling) -> None:
    assert read_sentences(describe(tmp_path, modules, pooling)).pooling == expected


def test_without_such_files_it_is_the_mean(tmp_path: Path) -> None:
    assert read_sentences(tmp_path).pooling == Pooling("mean", normalise=False)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        ({}, None, r"modules\.json: expected a list of modules"),
        ([TRANSFORMER, 3], None, r"modules\.json: expected a list of modules"),
        (
            [{**TRANSFORMER, "path": "0_Transformer"}],
            None,
            r"\[0\]: module .* at path '0_Transformer' is not supported",
        ),
        (
            [TRANSFORMER, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}],
            None,
            r"3_Dense.config\.json: not readable",
        ),
        (
            [TRANSFORMER, POOLING, {"path": "2_LSTM", "type": "sentence_transformers.models.LSTM"}],
            MEAN,
            r"\[2\]: module .*LSTM' at path '2_LSTM' is not supported; supported are .* any Dense",
        ),
        ([TRANSFORMER, NORMALIZE, POOLING], MEAN, r"\[2\]: module .*Pooling' at path '1_Pooling'"),
        ([TRANSFORMER, POOLING], {**MEAN, "pooling_mode_max_tokens": True}, r"pooling mean and max is not supported"),
        ([TRANSFORMER, POOLING], {"pooling_mode": "lasttoken"}, r"pooling lasttoken is not supported; use mean or cls"),
        ([TRANSFORMER, POOLING], {}, r"1_Pooling.config\.json: pooling of no kind is not supported"),
        ([TRANSFORMER, POOLING], [], r"1_Pooling.config\.json: expected a JSON object"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, modules: Any, pooling: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sentences(describe(tmp_path, modules, pooling))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("mode", [MEAN, CLS])
def test_embeddings_are_pooled_so(
    mode: Any, normalise: bool, tmp_path: Path, make_encoder: Any, texts: Any, run_items: Any
) -> None:
    path = tmp_path / "model"
    shutil.copytree(make_encoder("bert").path, path)
    describe(path, [TRANSFORMER, POOLING, *([NORMALIZE] if normalise else [])], mode)
    assert EncoderConfig.from_directory(path).pooling.normalise == normalise
    for outputs in run_items(load_encoder(path), texts(3, 8, 8, 1)):
        hidden = outputs["last_hidden_state"]
        expected = hidden[0] if mode is CLS else hidden.mean(0)
        if normalise:
            expected = expected / expected.norm()
        torch.testing.assert_close(outputs["embedding"], expected)


DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def add_dense(path: Path, weights: dict[str, torch.Tensor], **stated: Any) -> None:
    """A Dense module from 32 to 7 in the folder ``2_Dense``."""
    (path / "2_Dense").mkdir()
    document = {"in_features": 32, "out_features": 7, "bias": "linear.bias" in weights, **stated}
    (path / "2_Dense" / "config.json").write_text(json.dumps(document))
    save_file(weights, path / "2_Dense" / "model.safetensors")


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("torch.nn.modules.activation.Tanh", torch.tanh),
        ("torch.nn.modules.linear.Identity", lambda x: x),
        (None, torch.tanh),
    ],
)
def test_a_dense_module_projects_embeddings(
    activation: str | None, function: Any, tmp_path: Path, make_encoder: Any, texts: Any, run_items: Any
) -> None:
    path = tmp_path / "model"
    shutil.copytree(make_encoder("bert").path, path)
    describe(path, [TRANSFORMER, POOLING, DENSE, NORMALIZE], MEAN)
    weights = {"linear.weight": torch.randn(7, 32), "linear.bias": torch.randn(7)}
    add_dense(path, weights, **({"activation_function": activation} if activation else {}))
    encoder = load_encoder(path)
    assert encoder.config.outputs["embedding"] == (7,)
    for outputs in run_items(encoder, texts(3, 8, 8, 1)):
        mean = outputs["last_hidden_state"].mean(0)
        expected = function(weights["linear.weight"] @ mean + weights["linear.bias"])
        torch.testing.assert_close(outputs["embedding"], expected / expected.norm(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"activation_function": "torch.nn.Softplus"}, "activation_function: 'torch.nn.Softplus' is not supported"),
        ({"in_features": 9}, r"in_features: expected 32, the width of what comes before, got 9"),
        ({"out_features": 0}, r"2_Dense.config\.json: out_features: expected a whole number"),
        ({"module_input_name": "token_embeddings"}, "module_input_name: only 'sentence_embedding' is supported"),
        ({"out_features": 8}, r"linear\.weight has shape \[7, 32\], config\.json implies \[8, 32\]"),
    ],
)
def test_other_dense_modules_are_refused(stated: Any, message: str, tmp_path: Path, make_encoder: Any) -> None:
    path = tmp_path / "model"
    shutil.copytree(make_encoder("bert").path, path)
    describe(path, [TRANSFORMER, POOLING, DENSE], MEAN)
    add_dense(path, {"linear.weight": torch.zeros(7, 32)}, **stated)
    with pytest.raises(ValueError, match=message):
        load_encoder(path)


@pytest.mark.parametrize(
    ("brand", "stated", "expected"),
    [
        ("bert", 16, 16),
        ("bert", None, 40),
        ("bert", 99, 40),
        ("roberta", 40, 38),
    ],
)
def test_the_longest_text_is_what_both_allow(
    brand: str, stated: int | None, expected: int, tmp_path: Path, make_encoder: Any
) -> None:
    """Of 40 positions RoBERTa leaves two unused."""
    path = tmp_path / "model"
    shutil.copytree(make_encoder(brand).path, path)
    assert not EncoderConfig.from_directory(path).truncates_texts
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": stated, "do_lower_case": False}))
    config = EncoderConfig.from_directory(path)
    assert (config.max_tokens, config.truncates_texts) == (expected, True)
    assert config.num_tokens([expected]) == expected
    with pytest.raises(ValueError, match=rf"{expected + 1} tokens, but the model takes at most {expected}.* as text"):
        config.num_tokens([expected + 1])


def test_a_length_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 0}))
    with pytest.raises(ConfigError, match=r"sentence_bert_config\.json: max_seq_length: expected a whole number"):
        read_sentences(tmp_path)
