"""Embeddings: how sentence-transformers says to pool, and that it is done so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stepwell.models.encoder import EncoderConfig, load_encoder
from stepwell.models.encoder.pooling import Pooling, read_pooling
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
    assert read_pooling(describe(tmp_path, modules, pooling)) == expected


def test_without_such_files_it_is_the_mean(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == Pooling("mean", normalise=False)


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
            r"\[1\]: module .*Dense",
        ),
        ([TRANSFORMER, POOLING], {**MEAN, "pooling_mode_max_tokens": True}, r"pooling mean and max is not supported"),
        ([TRANSFORMER, POOLING], {"pooling_mode": "lasttoken"}, r"pooling lasttoken is not supported; use mean or cls"),
        ([TRANSFORMER, POOLING], {}, r"1_Pooling.config\.json: pooling of no kind is not supported"),
        ([TRANSFORMER, POOLING], [], r"1_Pooling.config\.json: expected a JSON object"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, modules: Any, pooling: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_pooling(describe(tmp_path, modules, pooling))


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
