"""Tiny checkpoints saved by transformers, the same networks cut by hand, and a loop that serves them from pages."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stepwell.models.cache import CacheSequence, PagedKVCache
from stepwell.models.decoder import Decoder
from stepwell.models.ladder import SubNetwork
from stepwell.models.packed import PackedBatch, PackedSequence

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _random_model(brand: str, **fields: Any) -> PreTrainedModel:
    """A model of transformers whose weights are large enough that every part of it shows in the logits."""
    config = AutoConfig.for_model(brand, **{**TINY, **fields})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(len(brand))
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator) * 0.2
        weight.copy_(1 + noise if "norm" in name else noise)
    return model


@dataclass
class Checkpoint:
    """A model of transformers and the directory it was saved to."""

    reference: PreTrainedModel
    path: Path


@pytest.fixture(scope="session")
def random_model() -> Callable[..., PreTrainedModel]:
    return _random_model


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """``(brand, dtype=, shard_size=, ladders=, **config fields) -> Checkpoint``; ``ladders`` as in ``ladder.json``."""

    def make(
        brand: str = "llama",
        dtype: torch.dtype = torch.float32,
        shard_size: str = "1GB",
        ladders: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Checkpoint:
        path = tmp_path_factory.mktemp(brand) / "model"
        reference = _random_model(brand, **fields)
        for weight in reference.parameters():  # not ``reference.to``: it would round the rotary frequencies
            weight.data = weight.to(dtype)
        reference.save_pretrained(path, max_shard_size=shard_size)
        if ladders:
            (path / "ladder.json").write_text(json.dumps({"format": 1, "ladders": ladders}))
        return Checkpoint(reference, path)

    return make


class _NoAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoFFN(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


def _keep_rows(linear: nn.Linear, count: int) -> None:
    linear.weight = nn.Parameter(linear.weight[:count].clone(), requires_grad=False)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[:count].clone(), requires_grad=False)


def _keep_columns(linear: nn.Linear, count: int) -> None:
    linear.weight = nn.Parameter(linear.weight[:, :count].clone(), requires_grad=False)


def _cut_layer(layer: Any, groups: int | None, channels: int | None) -> None:
    attention, ffn = layer.self_attn, layer.mlp
    if groups is not None:
        kv_size = groups * attention.head_dim
        q_size = kv_size * attention.num_key_value_groups
        for linear, size in ((attention.q_proj, q_size), (attention.k_proj, kv_size), (attention.v_proj, kv_size)):
            _keep_rows(linear, size)
        _keep_columns(attention.o_proj, q_size)
    if channels is not None:
        _keep_rows(ffn.gate_proj, channels)
        _keep_rows(ffn.up_proj, channels)
        _keep_columns(ffn.down_proj, channels)


def _cut(
    model: PreTrainedModel,
    layers: int | None = None,
    ffn: int | Sequence[int] | None = None,
    kv_groups: int | Sequence[int] | None = None,
    drop_attention: Sequence[int] = (),
    drop_ffn: Sequence[int] = (),
) -> PreTrainedModel:
    """``model`` cut to what a level of ``ladder.json`` describes: fewer layers, sliced weights, sub-layers left out."""
    small = copy.deepcopy(model)
    for index, layer in enumerate(small.model.layers):
        groups, channels = (v[index] if isinstance(v, Sequence) else v for v in (kv_groups, ffn))
        _cut_layer(layer, groups, channels)
        if index in drop_attention or groups == 0:
            layer.self_attn = _NoAttention()
        if index in drop_ffn or channels == 0:
            layer.mlp = _NoFFN()
    if layers is not None:
        small.model.layers = small.model.layers[:layers]
        small.config.num_hidden_layers = layers
    return small


@pytest.fixture(scope="session")
def cut() -> Callable[..., PreTrainedModel]:
    return _cut


@pytest.fixture(scope="session")
def reference_logits() -> Callable[[PreTrainedModel, Sequence[int]], Tensor]:
    """Logits [tokens, vocabulary] of a model of transformers."""

    @torch.no_grad()
    def run(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
        return model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]

    return run


@dataclass
class Stream:
    """A sequence being served."""

    subnet: SubNetwork
    pages: CacheSequence
    token_ids: list[int] = field(default_factory=list)


class ServingLoop:
    """What the engine does with a decoder and a cache, without the engine: reserve, run, commit."""

    def __init__(
        self, decoder: Decoder, page_tokens: int = 4, num_pages: int = 400, dtype: torch.dtype = torch.float32
    ) -> None:
        config = decoder.config
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        self.decoder = decoder
        self.cache = PagedKVCache(*shape, num_pages=num_pages, page_tokens=page_tokens, dtype=dtype)

    def scatter_pages(self) -> None:
        """Occupy every other page, so that no two free pages follow each other."""
        first_layer_only = SubNetwork((1, *[0] * (self.cache.num_layers - 1)), (0,) * self.cache.num_layers)
        fillers = [self.cache.open(first_layer_only) for _ in range(self.cache.total_pages)]
        for filler in fillers:
            self.cache.reserve(filler, 1)
        for filler in sorted(fillers, key=lambda filler: int(filler.table[0, 0]))[::2]:
            self.cache.free(filler)

    def open(self, subnet: SubNetwork, prompt: Sequence[int] = ()) -> Stream:
        """A new stream; what the cache knows of ``prompt`` is taken from there (see ``stream.token_ids``)."""
        stream = Stream(subnet, self.cache.open(subnet, expected_tokens=48))
        if prompt:
            stream.token_ids = list(prompt[: self.cache.match_prefix(stream.pages, prompt)])
        return stream

    def step(self, chunks: Sequence[tuple[Stream, Sequence[int]]], wants_logits: bool = True) -> Tensor:
        """Run the next tokens of each stream in one batch: logits [streams, vocabulary] after the last of each."""
        batch = []
        for stream, token_ids in chunks:
            start = len(stream.token_ids)
            self.cache.reserve(stream.pages, start + len(token_ids))
            batch.append(PackedSequence(token_ids, start, stream.subnet, stream.pages, wants_logits))
        logits: Tensor = self.decoder(PackedBatch.pack(batch, self.cache))
        for stream, token_ids in chunks:
            stream.token_ids += token_ids
            self.cache.commit(stream.pages, stream.token_ids)
        self.cache.check_integrity()
        return logits

    def replay(self, subnet: SubNetwork, token_ids: Sequence[int], chunk_sizes: Sequence[int]) -> Tensor:
        """Logits [chunks, vocabulary] of one sequence alone, its tokens given in chunks of these sizes."""
        stream, rows = self.open(subnet), []
        for size in chunk_sizes:
            done = len(stream.token_ids)
            rows.append(self.step([(stream, token_ids[done : done + size])]))
        self.cache.free(stream.pages)
        return torch.cat(rows)


@pytest.fixture(scope="session")
def serving_loop() -> type[ServingLoop]:
    """``(decoder, page_tokens=, num_pages=, dtype=) -> ServingLoop``; every step checks the cache's integrity."""
    return ServingLoop
