"""Levels that change in mid-generation: every token equals what a full recompute gives at its own level.

The oracle for any schedule is one dense pass in which every token runs, in each layer, the units it ran there when it
passed: in the step it was computed in, or when it was backfilled. Where all levels are the start of the next (exact),
that is the dense run of the token's level over all tokens, and that is tested as well, on its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepwell.models.cache import CacheSequence, PagedKVCache
from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.models.exits import ExitStates
from stepwell.models.kernels import attention
from stepwell.models.kernels.attention import DenseAttention
from stepwell.models.ladder import SubNetwork
from stepwell.models.packed import PackedBatch, plan_layers

BASE = DecoderConfig(
    vocab_size=61,
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_channels=48,
    max_positions=96,
)
MODELS = {
    "grouped": BASE,
    "windows": replace(BASE, num_kv_heads=1, layer_windows=(None, 5, 3, None), tied_embeddings=True),
    "biases": replace(BASE, num_kv_heads=4, head_dim=6, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True),
}
TOKENS = [int(token) for token in torch.randint(0, 61, (96,), generator=torch.Generator().manual_seed(3))]
NUM_STREAMS = 3


@pytest.fixture(scope="module", params=MODELS)
def decoder(request: Any) -> Decoder:
    generator = torch.Generator().manual_seed(7)
    model = Decoder(MODELS[request.param]).requires_grad_(False).eval()
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator) * 0.2
        weight.copy_(1 + noise if "norm" in name else noise)
    return model


def depth_levels(groups: Sequence[int], channels: Sequence[int]) -> list[SubNetwork]:
    """Everything from no layer to all of them."""
    cuts = range(len(groups) + 1)
    return [
        SubNetwork(*(tuple(u if i < n else 0 for i, u in enumerate(units)) for units in (groups, channels)))
        for n in cuts
    ]


@dataclass
class Stream:
    """A generation that changes level: the engine's part of it, by hand."""

    cache: PagedKVCache
    pages: CacheSequence
    token_ids: list[int]
    max_depth: int
    exits: ExitStates[int] = field(default_factory=ExitStates)
    done: int = 0
    units: list[SubNetwork] = field(default_factory=list)
    """Of each computed token, what it has run so far."""

    def rows(self, num_tokens: int, subnet: SubNetwork) -> list[Any]:
        self.cache.widen(self.pages, subnet)
        self.cache.reserve(self.pages, self.done + num_tokens)
        step = self.exits.begin(self.done, num_tokens, subnet, subnet.num_units, self.max_depth)
        self.step = step
        return step.packed(self.token_ids[self.done : self.done + num_tokens], self.done, subnet, self.pages, True)

    def ran(self, num_tokens: int, subnet: SubNetwork) -> None:
        self.exits.commit()
        for segment in self.step.backfill:
            for at in range(segment.start, segment.end):
                self.units[at] = joined(self.units[at], subnet, segment.depth)
        self.units += [subnet] * num_tokens
        self.done += num_tokens
        self.cache.commit(self.pages, self.token_ids[: self.done], subnet)

    def put_back(self, subnet: SubNetwork) -> None:
        self.cache.free(self.pages)
        self.pages, self.done, self.units = self.cache.open(subnet), 0, []
        self.exits.clear()


def joined(below: SubNetwork, above: SubNetwork, depth: int) -> SubNetwork:
    groups = below.kv_groups[:depth] + above.kv_groups[depth:]
    return SubNetwork(groups, below.ffn_channels[:depth] + above.ffn_channels[depth:])


class Server:
    """Streams over one cache, stepped together."""

    def __init__(self, decoder: Decoder, first_levels: Sequence[SubNetwork], max_depth: int, page_tokens: int) -> None:
        config = decoder.config
        self.decoder = decoder
        self.cache = PagedKVCache(config.num_layers, config.num_kv_heads, config.head_dim, 400, page_tokens)
        for storage in (self.cache.keys, self.cache.values):
            storage.fill_(float("nan"))  # what was never written must never be read
        # Distinct first tokens: a prefix in common would be found in the cache, but is not looked for here.
        self.streams = [
            Stream(self.cache, self.cache.open(level), [n, *TOKENS[n:]], max_depth)
            for n, level in enumerate(first_levels)
        ]

    def step(self, parts: Sequence[tuple[Stream, int, SubNetwork]]) -> Tensor:
        """Logits after the last token of each (stream, tokens, level)."""
        rows = [row for stream, num_tokens, subnet in parts for row in stream.rows(num_tokens, subnet)]
        logits, states = self.decoder.forward_keeping(PackedBatch.pack(rows, self.cache))
        kept = [segment for stream, *_ in parts for segment in stream.step.kept]
        for segment, hidden in zip(kept, states, strict=True):
            assert hidden.shape == (segment.num_tokens, self.decoder.config.hidden_size)
            segment.hidden = [hidden]
        for stream, num_tokens, subnet in parts:
            stream.ran(num_tokens, subnet)
        self.cache.check_integrity()
        return logits


@torch.no_grad()
def dense(decoder: Decoder, subnet: SubNetwork, token_ids: Sequence[int]) -> Tensor:
    return decoder.logits(decoder.forward_dense(torch.tensor([list(token_ids)]), subnet)[-1])[0, -1]


@torch.no_grad()
def oracle(decoder: Decoder, units: Sequence[SubNetwork], token_ids: Sequence[int], depth: int) -> Tensor:
    """Logits of the last token after ``depth`` layers, when token i runs ``units[i]``."""
    plans = plan_layers(units, [1] * len(units))[:depth]
    x = decoder.model.embed_tokens(torch.tensor(token_ids))
    rotary = decoder.rotary.at(torch.arange(len(units)), x.dtype)
    x = decoder._run_layers(x, plans, rotary, DenseAttention(decoder.config, 1))
    return decoder.logits(decoder.model.norm(x[-1]))


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


moves = st.lists(  # for each step: who runs how many tokens at which level, and who is put back before it
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, NUM_STREAMS - 1), st.one_of(st.just(1), st.integers(1, 7)), st.integers(0, 99)),
            min_size=1,
            max_size=NUM_STREAMS,
            unique_by=lambda part: part[0],
        ),
        st.one_of(st.none(), st.none(), st.none(), st.integers(0, NUM_STREAMS - 1)),
    ),
    min_size=2,
    max_size=12,
)


def play(
    decoder: Decoder, levels: Sequence[SubNetwork], schedule: Any, page_tokens: int
) -> list[tuple[Tensor, Stream, SubNetwork, list[SubNetwork], list[int]]]:
    """Carry out ``schedule``: for each output its logits, stream, level, and what all tokens had run by then."""
    max_depth = max(level.depth for level in levels)
    server = Server(decoder, [levels[n % len(levels)] for n in range(NUM_STREAMS)], max_depth, page_tokens)
    outputs = []
    for chosen, put_back in schedule:
        if put_back is not None:
            server.streams[put_back].put_back(levels[chosen[0][2] % len(levels)])
        parts = [(server.streams[n], num_tokens, levels[level % len(levels)]) for n, num_tokens, level in chosen]
        for row, (stream, _, level) in zip(server.step(parts), parts, strict=True):
            outputs.append((row, stream, level, list(stream.units), stream.token_ids[: stream.done]))
    for stream in server.streams:
        server.cache.free(stream.pages)
    assert server.cache.free_pages == server.cache.total_pages
    return outputs


@pytest.mark.parametrize("shared_call_bytes", [0, 1 << 40], ids=["alone", "together"])
@settings(deadline=None, max_examples=40)
@given(schedule=moves, page_tokens=st.sampled_from([1, 3, 32]), uneven=st.booleans(), lowest=st.integers(0, 2))
def test_a_depth_ladder_is_exact_under_any_schedule(
    shared_call_bytes: int, decoder: Decoder, schedule: Any, page_tokens: int, uneven: bool, lowest: int
) -> None:
    heads = decoder.config.num_kv_heads
    groups = (heads, max(1, heads // 2), heads, 1) if uneven else (heads,) * 4
    channels = (48, 20, 0, 33) if uneven else (48,) * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SHARED_CALL_BYTES", shared_call_bytes)
        outputs = play(decoder, depth_levels(groups, channels)[lowest:], schedule, page_tokens)
    for row, _, level, units, token_ids in outputs:
        assert_near(row, dense(decoder, level, token_ids))
        assert_near(row, oracle(decoder, units, token_ids, level.depth))


@settings(deadline=None, max_examples=40)
@given(schedule=moves, page_tokens=st.sampled_from([2, 32]))
def test_an_approximate_ladder_does_what_it_says(decoder: Decoder, schedule: Any, page_tokens: int) -> None:
    """New rows at the new width read old keys; a backfilled token runs the layers above at the width of the step."""
    heads = decoder.config.num_kv_heads
    shapes = [(1, 9), (2, 9), (3, 9), (4, 9), (4, 30), (4, 48)]
    levels = [depth_levels((heads,) * 4, (width,) * 4)[depth] for depth, width in shapes]
    for row, _, level, units, token_ids in play(decoder, levels, schedule, page_tokens):
        assert_near(row, oracle(decoder, units, token_ids, level.depth))


def test_ladders_that_disagree_share_a_batch_with_a_backfill(decoder: Decoder) -> None:
    heads = decoder.config.num_kv_heads
    deep, narrow = depth_levels((heads,) * 4, (48,) * 4), depth_levels((heads,) * 4, (9,) * 4)
    server = Server(decoder, [deep[2], narrow[4], deep[3]], 4, 3)
    first, second, third = server.streams
    server.step([(first, 9, deep[2]), (second, 4, narrow[4]), (third, 7, deep[3])])
    server.step([(first, 1, deep[1]), (second, 1, narrow[4]), (third, 1, deep[1])])
    logits = server.step([(first, 1, deep[4]), (second, 1, narrow[4]), (third, 2, deep[2])])
    for row, stream, level in zip(logits, server.streams, (deep[4], narrow[4], deep[2]), strict=True):
        assert_near(row, dense(decoder, level, stream.token_ids[: stream.done]))
    assert [(s.start, s.num_tokens, s.depth) for s in third.exits.segments] == [(0, 7, 3), (7, 3, 2)]
    assert first.exits.segments == []
    assert sum(len(piece) for piece in third.exits.segments[1].hidden) == 3


def test_states_are_kept_in_the_models_precision_and_hold_on_to_nothing_else(decoder: Decoder) -> None:
    heads = decoder.config.num_kv_heads
    levels = depth_levels((heads,) * 4, (48,) * 4)
    server = Server(decoder, [levels[2]] * 3, 4, 4)
    server.step([(stream, 5, levels[2]) for stream in server.streams])
    (segment,) = server.streams[0].exits.segments
    (hidden,) = segment.hidden
    assert hidden.dtype == decoder.dtype
    assert hidden.untyped_storage().nbytes() == 5 * decoder.config.hidden_size * hidden.element_size()


def test_a_prefix_found_in_the_cache_serves_a_generation_that_switches(decoder: Decoder) -> None:
    heads = decoder.config.num_kv_heads
    levels = depth_levels((heads,) * 4, (48,) * 4)
    server = Server(decoder, [levels[4]] * 3, 4, 4)
    first, second, third = server.streams
    second.token_ids[:12] = third.token_ids[:12] = first.token_ids[:12]
    server.step([(first, 20, levels[4])])
    # The second opens as deep as it may ever go, so it holds what it could not backfill.
    second.done = server.cache.match_prefix(second.pages, second.token_ids[:20])
    assert second.done == 12
    second.units = [levels[4]] * 12
    for num_tokens, level in ((3, levels[2]), (1, levels[1]), (1, levels[4])):
        (row,) = server.step([(second, num_tokens, level)])
        assert_near(row, dense(decoder, level, second.token_ids[: second.done]))
    # What it computed while it changed level can be found as computed by the shallowest.
    third.token_ids[:17] = second.token_ids[:17]
    shallow, deep = server.cache.open(levels[1]), server.cache.open(levels[2])
    assert server.cache.match_prefix(shallow, second.token_ids[:17]) == 16
    assert server.cache.match_prefix(deep, second.token_ids[:17]) == 12


def test_the_order_of_batch_mates_changes_nothing(decoder: Decoder) -> None:
    heads = decoder.config.num_kv_heads
    levels = depth_levels((heads,) * 4, (48,) * 4)
    draw = random.Random(5)
    plan = [[(n, draw.choice((1, 1, 4)), draw.randrange(5)) for n in range(NUM_STREAMS)] for _ in range(6)]
    together = play(decoder, levels, [(step, None) for step in plan], 4)
    alone = [
        play(decoder, levels, [([part], None) for step in plan for part in step if part[0] == n], 4)
        for n in range(NUM_STREAMS)
    ]
    for i, (row, *_) in enumerate(together):
        assert_near(row, alone[i % NUM_STREAMS][i // NUM_STREAMS][0])


def bfloat16(decoder: Decoder) -> Decoder:
    model = Decoder(decoder.config).requires_grad_(False).eval()
    model.load_state_dict(decoder.state_dict())
    return model.to(torch.bfloat16)


def test_going_up_in_bfloat16_is_as_near_as_having_been_up_all_along(decoder: Decoder) -> None:
    heads = decoder.config.num_kv_heads
    levels, model = depth_levels((heads,) * 4, (48,) * 4), bfloat16(decoder)
    logits: dict[str, Tensor] = {}
    for name, first in (("switched", levels[2]), ("deep", levels[4])):
        server = Server(model, [first] * 3, 4, 4)
        server.step([(server.streams[0], 12, first)])
        logits[name] = server.step([(server.streams[0], 1, levels[4])]).float()
    exact = dense(decoder, levels[4], server.streams[0].token_ids[:13])
    error = {name: float((row[0] - exact).abs().max()) for name, row in logits.items()}
    assert error["switched"] <= 2 * error["deep"] + 0.02
