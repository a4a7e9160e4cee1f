"""Levels of DeBERTa and ModernBERT against the model of transformers cut to them, alone and among other levels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

WIDTH, HEAD_DIM, CHANNELS = 32, 8, 48
LEVELS: dict[str, dict[str, Any]] = {
    "depth-1": {"layers": 1},
    "depth-2": {"layers": 2},
    "ffn": {"ffn": 7},
    "heads": {"kv_groups": 1},
    "all": {"layers": 2, "ffn": 30, "kv_groups": 3},
    "per-layer": {"ffn": [9, 30, 48], "kv_groups": [4, 3, 1]},
    "full": {},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("deberta", {}),
    "v2-own-projections": ("deberta-v2", {"share_att_key": False}),
    "v2-convolution": ("deberta-v2", {"conv_kernel_size": 3}),
    "v3": ("deberta-v2", {}),
    "modern": ("modernbert", {}),
    "modern-biases": ("modernbert", {"attention_bias": True, "mlp_bias": True}),
}


def keep(linear: nn.Linear, rows: list[int] | None = None, columns: int | None = None) -> None:
    """Cut a linear layer to some rows, or to its first columns."""
    rows = list(range(len(linear.weight))) if rows is None else rows
    linear.weight = nn.Parameter(linear.weight[rows, :columns].clone(), requires_grad=False)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[rows].clone(), requires_grad=False)


def cut_disentangled(layer: Any, heads: int, channels: int) -> None:
    attention, rows = layer.attention.self, list(range(heads * HEAD_DIM))
    attention.num_attention_heads = heads
    for name, part in attention.named_children():
        if isinstance(part, nn.Linear):
            keep(part, list(range(3 * heads * HEAD_DIM)) if name == "in_proj" else rows)
    for name in ("q_bias", "v_bias"):
        if hasattr(attention, name):
            setattr(attention, name, nn.Parameter(getattr(attention, name)[rows].clone(), requires_grad=False))
    keep(layer.attention.output.dense, columns=heads * HEAD_DIM)
    keep(layer.intermediate.dense, list(range(channels)))
    keep(layer.output.dense, columns=channels)


def cut_modern(layer: Any, heads: int, channels: int) -> None:
    keep(layer.attn.Wqkv, [first + row for first in (0, WIDTH, 2 * WIDTH) for row in range(heads * HEAD_DIM)])
    keep(layer.attn.Wo, columns=heads * HEAD_DIM)
    keep(layer.mlp.Wi, [first + row for first in (0, CHANNELS) for row in range(channels)])
    keep(layer.mlp.Wo, columns=channels)


def of_layer(value: Any, index: int, default: int) -> int:
    return default if value is None else int(value[index] if isinstance(value, list) else value)


def cut(
    brand: str, model: PreTrainedModel, layers: int | None = None, ffn: Any = None, kv_groups: Any = None
) -> PreTrainedModel:
    """``model`` cut to what a level of ``ladder.json`` describes."""
    small = copy.deepcopy(model)
    base = small.base_model
    parent, name = (base, "layers") if brand == "modernbert" else (base.encoder, "layer")
    for index, layer in enumerate(getattr(parent, name)):
        heads, channels = of_layer(kv_groups, index, 4), of_layer(ffn, index, CHANNELS)
        (cut_modern if brand == "modernbert" else cut_disentangled)(layer, heads, channels)
    setattr(parent, name, getattr(parent, name)[:layers])
    small.config.num_hidden_layers = layers or 3
    return small


@pytest.mark.parametrize("variant", VARIANTS)
def test_levels_are_the_model_cut_to_them(
    variant: str,
    make_encoder: Any,
    open_encoder: Any,
    subnet_of: Any,
    texts: Any,
    run_items: Any,
    reference_outputs: Any,
    assert_same: Any,
) -> None:
    brand, fields = VARIANTS[variant]
    reference, encoder = make_encoder(brand, "sequence", **fields).reference, open_encoder(brand, "sequence", **fields)
    batch = texts(*[5 + 6 * (index % 2) for index in range(len(LEVELS))])
    subnets = [subnet_of(encoder, **level) for level in LEVELS.values()]
    expected = [
        reference_outputs(cut(brand, reference, **level), ids)
        for level, ids in zip(LEVELS.values(), batch, strict=True)
    ]
    for packed_bytes in (0, 1 << 24):
        encoder.prepare_serving(packed_bytes)
        for ours, theirs in zip(run_items(encoder, batch, subnets), expected, strict=True):
            assert_same(ours, theirs)
    for ids, subnet, theirs in zip(batch, subnets, expected, strict=True):
        assert_same(run_items(encoder, [ids], [subnet])[0], theirs)


@pytest.mark.parametrize("fields", [{}, {"conv_kernel_size": 3}])
def test_a_level_without_layers_gives_the_embeddings(
    fields: dict[str, Any], make_encoder: Any, open_encoder: Any, subnet_of: Any, texts: Any, run_items: Any
) -> None:
    encoder = open_encoder("deberta-v2", **fields)
    none, full = subnet_of(encoder, layers=0), encoder.config.architecture.full
    for_none, for_full = texts(7, 4)
    together = run_items(encoder, [for_none, for_full], [none, full])
    expected = make_encoder("deberta-v2", **fields).reference.embeddings(for_none[None])[0]
    assert (together[0]["last_hidden_state"] - expected).abs().max() < 1e-5
    alone = run_items(encoder, [for_full])[0]["last_hidden_state"]
    assert (together[1]["last_hidden_state"] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("brand", ["deberta", "deberta-v2", "modernbert"])
def test_two_widths_are_measured_when_serving_is_prepared(
    brand: str, open_encoder: Any, subnet_of: Any, texts: Any, run_items: Any, assert_same: Any
) -> None:
    encoder = open_encoder(brand)
    batch, subnets = texts(9, 4), [encoder.config.architecture.full, subnet_of(encoder, ffn=7)]
    plain = run_items(encoder, batch, subnets)
    assert encoder.prepare_serving(1 << 24, [7, CHANNELS]).run_wide is not None
    for ours, theirs in zip(run_items(encoder, batch, subnets), plain, strict=True):
        assert_same(ours, theirs)


def test_distances_are_made_anew_while_weights_may_change(open_encoder: Any, texts: Any, run_items: Any) -> None:
    encoder = open_encoder("deberta-v2")
    (ids,) = texts(9)
    before = run_items(encoder, [ids])[0]["embedding"]
    encoder.requires_grad_(True)
    with torch.no_grad():
        encoder.context.rows.weight.neg_()
    after = run_items(encoder, [ids])[0]["embedding"]
    assert (after - before).abs().max() > 1e-3
