"""Tiny encoders saved by transformers, and the same networks cut by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from stepwell.models.encoder import Encoder, load_encoder
from stepwell.models.ladder import Level, SubNetwork, parse_ladders
from stepwell.models.one_shot import Item

HEADS = {
    "none": "AutoModel",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
}
TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "num_labels": 5,
}
BRAND_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "albert": {"embedding_size": 20},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4},
}


def _random_encoder(brand: str, head: str, **fields: Any) -> PreTrainedModel:
    """A model of transformers whose weights are large enough that every part of it shows in the outputs."""
    config = AutoConfig.for_model(brand, **{**TINY, **BRAND_FIELDS.get(brand, {}), **fields})
    model = getattr(transformers, HEADS[head]).from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(len(brand) + len(head))
    for name, weight in model.eval().requires_grad_(False).named_parameters():
        noise = torch.randn(weight.shape, generator=generator) * 0.2
        weight.copy_(1 + noise if "norm" in name.lower() and name.endswith("weight") else noise)
    return model


@dataclass
class EncoderCheckpoint:
    """A model of transformers and the directory it was saved to."""

    reference: PreTrainedModel
    path: Path


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EncoderCheckpoint]:
    """``(brand, head="none", dtype=, **config fields) -> EncoderCheckpoint``; the same one for the same arguments.

    ``head``: none, masked_lm, sequence or token."""
    made: dict[str, EncoderCheckpoint] = {}

    def make(
        brand: str = "bert", head: str = "none", dtype: torch.dtype = torch.float32, **fields: Any
    ) -> EncoderCheckpoint:
        key = json.dumps([brand, head, str(dtype), fields], sort_keys=True)
        if key not in made:
            path = tmp_path_factory.mktemp(brand) / "model"
            reference = _random_encoder(brand, head, **fields).to(dtype)
            reference.save_pretrained(path)
            made[key] = EncoderCheckpoint(reference, path)
        return made[key]

    return make


@pytest.fixture
def open_encoder(make_encoder: Any) -> Callable[..., Encoder]:
    """Arguments as of ``make_encoder``: the checkpoint, opened by our loader."""
    return lambda *args, **fields: load_encoder(make_encoder(*args, **fields).path)


@pytest.fixture(scope="session")
def texts() -> Callable[..., list[Tensor]]:
    """``(*lengths, seed=0)``: random token ids, one text a length; the padding's may be among them."""

    def draw(*lengths: int, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(0, 61, (length,), generator=generator) for length in lengths]

    return draw


@pytest.fixture(scope="session")
def reference_outputs() -> Callable[[PreTrainedModel, Tensor], dict[str, Tensor]]:
    """What a model of transformers says of one text, by our names."""

    @torch.no_grad()
    def run(model: PreTrainedModel, token_ids: Tensor) -> dict[str, Tensor]:
        out = model(token_ids[None], output_hidden_states=True)
        hidden = out.hidden_states[-1][0].float()
        named = {"last_hidden_state": hidden, "embedding": hidden.mean(0)}
        return {**named, "logits": out.logits[0].float()} if "logits" in out else named

    return run


@pytest.fixture(scope="session")
def subnet_of() -> Callable[..., SubNetwork]:
    """``(encoder, **fields of a level in ladder.json) -> SubNetwork``."""

    def read(encoder: Encoder, **fields: Any) -> SubNetwork:
        document = {"format": 1, "ladders": {"test": {"levels": [fields]}}}
        level: Level = parse_ladders(document, encoder.config.architecture).ladders["test"].levels[0]
        return level.subnet

    return read


@pytest.fixture(scope="session")
def run_items() -> Callable[..., list[dict[str, Tensor]]]:
    """``(encoder, texts, subnets)``: all outputs of every text of one batch; ``subnets`` default to the full model."""

    def run(
        encoder: Encoder, token_ids: Sequence[Tensor], subnets: Sequence[SubNetwork] | None = None
    ) -> list[dict[str, Tensor]]:
        subnets = subnets or [encoder.config.architecture.full] * len(token_ids)
        items = [Item(ids, subnet) for ids, subnet in zip(token_ids, subnets, strict=True)]
        outputs = encoder.run(items, list(encoder.config.outputs))
        assert [out.tokens_kept for out in outputs] == [len(ids) for ids in token_ids]
        return [dict(out.tensors) for out in outputs]

    return run


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """``(ours, theirs, atol=1e-4)``: the same outputs, each within the tolerance."""

    def check(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], atol: float = 1e-4) -> None:
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")

    return check


PARTS = {
    "bert": ("encoder.layer", "attention.self", ("query", "key", "value"), "attention.output.dense"),
    "roberta": ("encoder.layer", "attention.self", ("query", "key", "value"), "attention.output.dense"),
    "distilbert": ("transformer.layer", "attention", ("q_lin", "k_lin", "v_lin"), "attention.out_lin"),
    "albert": (
        "encoder.albert_layer_groups.0.albert_layers",
        "attention",
        ("query", "key", "value"),
        "attention.dense",
    ),
}
"""Where each family keeps its layers, the input of attention, its projections, and its output."""
FFNS = {
    "bert": ("intermediate.dense", "output.dense"),
    "roberta": ("intermediate.dense", "output.dense"),
    "distilbert": ("ffn.lin1", "ffn.lin2"),
    "albert": ("ffn", "ffn_output"),
}


def _keep_rows(linear: nn.Linear, count: int) -> None:
    linear.weight = nn.Parameter(linear.weight[:count].clone(), requires_grad=False)
    linear.bias = nn.Parameter(linear.bias[:count].clone(), requires_grad=False)


def _keep_columns(linear: nn.Linear, count: int) -> None:
    linear.weight = nn.Parameter(linear.weight[:, :count].clone(), requires_grad=False)


class _Through(nn.Module):
    """A sub-layer that is not there."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return hidden_states, None


def _cut_layer(brand: str, layer: nn.Module, heads: int | None, channels: int | None) -> None:
    _, attention, projections, out = PARTS[brand]
    if heads:
        for name in projections:
            _keep_rows(layer.get_submodule(f"{attention}.{name}"), heads * 8)
        _keep_columns(layer.get_submodule(out), heads * 8)
    if channels:
        _keep_rows(layer.get_submodule(FFNS[brand][0]), channels)
        _keep_columns(layer.get_submodule(FFNS[brand][1]), channels)
    if heads == 0:
        layer.attention = _Through()
    if channels == 0:
        layer.feed_forward_chunk = lambda hidden_states: hidden_states


@pytest.fixture(scope="session")
def cut_encoder() -> Callable[..., PreTrainedModel]:
    """``(brand, model, layers=, ffn=, kv_groups=)``: ``model`` cut to what a level of ``ladder.json`` describes."""

    def cut(
        brand: str,
        model: PreTrainedModel,
        layers: int | None = None,
        ffn: int | Sequence[int] | None = None,
        kv_groups: int | Sequence[int] | None = None,
    ) -> PreTrainedModel:
        small = copy.deepcopy(model)
        path = PARTS[brand][0]
        parent, _, name = path.rpartition(".")
        modules = small.base_model.get_submodule(path)
        for index, layer in enumerate(modules):
            heads, channels = (v[index] if isinstance(v, Sequence) else v for v in (kv_groups, ffn))
            _cut_layer(brand, layer, heads, channels)
        if layers is not None:
            small.config.num_hidden_layers = layers
            if brand != "albert":
                setattr(small.base_model.get_submodule(parent), name, modules[:layers])
        return small

    return cut
