"""The decoder against transformers: checkpoints it saved, opened by our loader; every kind of level against the model
cut to it. Both ways of running: dense (training, evaluation) and packed over the paged cache (serving)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stepwell.models.decoder import Decoder
from stepwell.models.kernels.linear import can_pack
from stepwell.models.layers.staircase import WideRule
from stepwell.models.loader import LoadedModel, open_model

PROMPT = [int(token) for token in torch.randint(0, 61, (30,), generator=torch.Generator().manual_seed(0))]
CHUNKS = (25, 1, 1, 1, 1, 1)
LAST_ROWS = slice(24, 30)
"""The positions after which serving ``PROMPT`` in ``CHUNKS`` gives logits."""
PLENTY = 1 << 24

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
WINDOWED = {"use_sliding_window": True, "sliding_window": 5}

BRANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 4}),
    "llama-gqa-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1, "num_attention_heads": 4}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 12, "rms_norm_eps": 0.01}),
    "qwen2": ("qwen2", {}),
    "qwen2-windows": ("qwen2", {**WINDOWED, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied-biases": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-layer-types": (
        "qwen3",
        {"head_dim": 6, **WINDOWED, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
}


def dense(decoder: Decoder, subnet: Any, token_ids: Sequence[int] = PROMPT) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder.forward_dense(torch.tensor([list(token_ids)]), subnet)[-1])[0]


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
@pytest.mark.parametrize("name", BRANDS)
def test_full_level_is_the_model_of_transformers(
    name: str, shard_size: str, make_checkpoint: Any, serving_loop: Any, reference_logits: Any
) -> None:
    brand, fields = BRANDS[name]
    checkpoint = make_checkpoint(brand, shard_size=shard_size, **fields)
    assert (len(list(checkpoint.path.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    opened = open_model(str(checkpoint.path))
    expected = reference_logits(checkpoint.reference, PROMPT)
    full = opened.ladders.subnet("max")
    assert_near(dense(opened.decoder, full), expected)
    assert_near(serving_loop(opened.decoder).replay(full, PROMPT, CHUNKS), expected[LAST_ROWS])


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("llama3", {"rope_scaling": {"rope_type": "default"}}),
        ("llama-linear", {"rope_scaling": {"rope_type": "default"}}),
        ("llama-head-dim", {"rms_eps": 1e-6}),
        ("qwen2-windows", {"layer_windows": ()}),
        ("qwen3-layer-types", {"layer_windows": (5, 5, 5)}),
        ("mistral", {"layer_windows": (6, 6, 6)}),
    ],
)
def test_the_comparison_would_notice(name: str, without: dict[str, Any], make_checkpoint: Any) -> None:
    brand, fields = BRANDS[name]
    opened = open_model(str(make_checkpoint(brand, **fields).path))
    other = Decoder(dataclasses.replace(opened.config, **without))
    other.load_state_dict(opened.decoder.state_dict())
    full = opened.ladders.subnet("max")
    assert (dense(other, full) - dense(opened.decoder, full)).abs().max() > 1e-2


LEVELS: dict[str, dict[str, Any]] = {
    "depth0": {"layers": 0},
    "depth1": {"layers": 1},
    "depth2": {"layers": 2},
    "ffn": {"ffn": 17},
    "ffn-by-layer": {"ffn": [48, 5, 0]},
    "heads": {"kv_groups": 1},
    "heads-by-layer": {"kv_groups": [2, 1, 0]},
    "no-attention-1": {"drop_attention": [1]},
    "no-attention-0-2": {"drop_attention": [0, 2]},
    "no-attention": {"drop_attention": [0, 1, 2]},
    "no-ffn-0": {"drop_ffn": [0]},
    "no-layer-1": {"drop_attention": [1], "drop_ffn": [1]},
    "all-kinds": {"layers": 2, "ffn": [30, 8, 48], "kv_groups": [1, 2, 2], "drop_attention": [0], "drop_ffn": [1]},
}


@pytest.fixture(scope="module", params=["llama-biases", "qwen3", "mistral"])
def cut_model(
    request: Any, make_checkpoint: Any, cut: Any, reference_logits: Any
) -> tuple[LoadedModel, dict[str, Tensor]]:
    """A model with one ladder per entry of ``LEVELS``, and what transformers answers cut to each."""
    brand, fields = BRANDS[request.param]
    ladders = {name: {"levels": [level]} for name, level in LEVELS.items()}
    checkpoint = make_checkpoint(brand, ladders=ladders, **fields)
    expected = {name: reference_logits(cut(checkpoint.reference, **level), PROMPT) for name, level in LEVELS.items()}
    return open_model(str(checkpoint.path)), expected


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_the_model_cut_to_it(
    level: str, cut_model: tuple[LoadedModel, dict[str, Tensor]], serving_loop: Any
) -> None:
    opened, expected = cut_model
    subnet = opened.ladders.subnet(f"{level}:0")
    assert_near(dense(opened.decoder, subnet), expected[level])
    served = serving_loop(opened.decoder).replay(subnet, PROMPT, CHUNKS)
    assert_near(served, expected[level][LAST_ROWS])


def test_the_levels_differ(cut_model: tuple[LoadedModel, dict[str, Tensor]]) -> None:
    _, expected = cut_model
    rows = torch.stack([logits[-1] for logits in expected.values()])
    distances = torch.cdist(rows, rows).fill_diagonal_(1.0)
    assert distances.min() > 1e-2


COIN = random.Random(1)
RULES: dict[str, WideRule | None] = {
    "exact": None,
    "wide": lambda *_: True,
    "random": lambda *_: COIN.random() < 0.5,
}


@pytest.mark.parametrize("packed_bytes", [0, 5000, PLENTY], ids=["plain", "some-packed", "packed"])
@pytest.mark.parametrize("rule", RULES)
def test_all_levels_in_one_batch(
    rule: str, packed_bytes: int, cut_model: tuple[LoadedModel, dict[str, Tensor]], serving_loop: Any
) -> None:
    if packed_bytes and not can_pack(torch.float32):
        pytest.skip("this build of torch has no oneDNN")
    opened, expected = cut_model
    decoder = opened.decoder.prepare_serving(packed_bytes)
    decoder.run_wide = RULES[rule]
    loop = serving_loop(decoder)
    streams = {level: loop.open(opened.ladders.subnet(f"{level}:0")) for level in LEVELS}
    done = 0
    for size in CHUNKS:
        logits = loop.step([(stream, PROMPT[done : done + size]) for stream in streams.values()])
        done += size
        assert_near(logits, torch.stack([expected[level][done - 1] for level in LEVELS]))


def test_a_packed_budget_is_used_and_kept(make_checkpoint: Any, serving_loop: Any) -> None:
    opened = open_model(str(make_checkpoint().path))
    full = opened.ladders.subnet("max")
    expected = dense(opened.decoder, full)[LAST_ROWS]
    for budget in (5000, PLENTY):
        decoder = opened.decoder.prepare_serving(budget)
        assert_near(serving_loop(decoder).replay(full, PROMPT, CHUNKS), expected)
        assert (0 < decoder.linear.packed_bytes <= budget) == can_pack(torch.float32)
    matrices = [weight for name, weight in decoder.named_parameters() if weight.dim() == 2 and "embed" not in name]
    every_weight = sum(weight.numel() * weight.element_size() for weight in matrices)
    assert decoder.linear.packed_bytes in (0, every_weight)


def test_a_chain_of_hundreds_of_levels(
    make_checkpoint: Any, cut: Any, serving_loop: Any, reference_logits: Any
) -> None:
    coin = random.Random(3)
    units = [
        (kind, layer) for layer in range(3) for kind, count in (("ffn", 72), ("kv_groups", 2)) for _ in range(count)
    ]
    coin.shuffle(units)
    level: dict[str, list[int]] = {"ffn": [0] * 3, "kv_groups": [0] * 3}
    levels = []
    for kind, layer in units:
        level[kind][layer] += 1
        levels.append({kind: list(counts) for kind, counts in level.items()})
    checkpoint = make_checkpoint(ladders={"chain": {"levels": levels}}, intermediate_size=72)
    opened = open_model(str(checkpoint.path))
    assert len(opened.ladders.ladders["chain"].levels) == len(units) == 222
    loop = serving_loop(opened.decoder)
    chosen = [0, 40, 41, 90, 150, 221]
    streams = [loop.open(opened.ladders.subnet(f"chain:{k}")) for k in chosen]
    logits = loop.step([(stream, PROMPT) for stream in streams])
    for k, row in zip(chosen, logits, strict=True):
        assert_near(row, reference_logits(cut(checkpoint.reference, **levels[k]), PROMPT)[-1])
