"""Weight files of encoders: names with and without prefix, old names, spare tensors, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepwell.models.encoder import load_encoder
from stepwell.models.weights import ModelLoadError

Tensors = dict[str, Tensor]


@pytest.fixture
def edited(tmp_path: Path, make_encoder: Any) -> Callable[..., Path]:
    """``(edit, *arguments of make_encoder, **fields)``: that checkpoint with ``edit`` of its tensors."""

    def write(edit: Callable[[Tensors], Tensors], *args: Any, **fields: Any) -> Path:
        path = tmp_path / "model"
        shutil.copytree(make_encoder(*args, **fields).path, path)
        tensors = load_file(path / "model.safetensors")
        save_file({k: v.clone() for k, v in edit(tensors).items()}, path / "model.safetensors", {"format": "pt"})
        return path

    return write


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}


def with_tensorflow_names(tensors: Tensors) -> Tensors:
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for ours, theirs in renamed.items():
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    return tensors


def with_spare_tensors(tensors: Tensors) -> Tensors:
    return {
        **tensors,
        "bert.embeddings.position_ids": torch.arange(40)[None],
        "bert.pooler.dense.weight": torch.zeros(32, 32),
        "bert.pooler.dense.bias": torch.zeros(32),
        "cls.seq_relationship.weight": torch.zeros(2, 32),
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }


@pytest.mark.parametrize("edit", [without_prefix, with_tensorflow_names, with_spare_tensors])
def test_other_spellings_of_a_checkpoint_are_the_same_model(
    edit: Any, edited: Any, open_encoder: Any, texts: Any, run_items: Any, assert_same: Any
) -> None:
    batch = texts(5, 8)
    outputs = run_items(load_encoder(edited(edit, "bert", "masked_lm")), batch)
    for ours, theirs in zip(outputs, run_items(open_encoder("bert", "masked_lm"), batch), strict=True):
        assert_same(ours, theirs, atol=0)


def test_a_bare_encoder_with_prefix_opens(edited: Any, texts: Any, run_items: Any, open_encoder: Any) -> None:
    path = edited(lambda tensors: {f"roberta.{name}": tensor for name, tensor in tensors.items()}, "roberta")
    ours, theirs = (run_items(each, texts(6))[0] for each in (load_encoder(path), open_encoder("roberta")))
    assert torch.equal(ours["embedding"], theirs["embedding"])


def leave_out(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            leave_out("bert.encoder.layer.1.output.dense.bias", "classifier.bias"),
            r"2 tensors are missing, the first is head\.out\.bias",
        ),
        (
            lambda t: {**t, "extra.weight": torch.zeros(1)},
            r"unexpected tensor extra\.weight; config\.json \(model_type b",
        ),
        (lambda t: {**t, "cls.predictions.bias": torch.zeros(1)}, r"unexpected tensor cls\.predictions\.bias"),
        (
            lambda t: {**t, "bert.encoder.layer.3.output.dense.bias": torch.zeros(32)},
            r"unexpected tensor bert\.encoder\.layer\.3\.output\.dense\.bias",
        ),
        (
            lambda t: {**t, "classifier.weight": torch.zeros(5, 31)},
            r"classifier\.weight has shape \[5, 31\], config\.json",
        ),
        (lambda t: {**t, "classifier.bias": torch.zeros(5, dtype=torch.int8)}, r"classifier\.bias is torch\.int8"),
    ],
)
def test_weights_of_another_model_are_refused(edit: Any, message: str, edited: Any) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_encoder(edited(edit, "bert", "token"))


def test_a_head_that_the_configuration_does_not_name_is_refused(edited: Any) -> None:
    path = edited(lambda tensors: tensors, "bert", "sequence")
    document = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**document, "architectures": ["BertModel"]}))
    with pytest.raises(ModelLoadError, match=r"unexpected tensor classifier\.bias"):
        load_encoder(path)


def test_the_precision_asked_for_is_the_one_run_in(make_encoder: Any, texts: Any, run_items: Any) -> None:
    encoder = load_encoder(make_encoder("bert", "token").path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    assert run_items(encoder, texts(4))[0]["logits"].dtype == torch.float32
