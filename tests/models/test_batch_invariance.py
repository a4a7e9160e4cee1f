"""The output of a request does not depend on its batch-mates: random mixes of levels, ladders, lengths, chunks and
stages, split or wide, packed or plain, with or without shared prefixes, against each request alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepwell.models.kernels import attention
from stepwell.models.loader import LoadedModel, open_model
from stepwell.models.packed import plan_layers

LADDERS: dict[str, Any] = {
    "depth": {"levels": [{"layers": 1}, {"layers": 2}, {}]},
    "width": {"levels": [{"ffn": 7}, {"ffn": [20, 9, 30]}, {}]},
    "heads": {"levels": [{"kv_groups": 1}, {"kv_groups": [1, 2, 1]}, {"kv_groups": [1, 2, 2]}]},
    "other-heads": {"levels": [{"kv_groups": [2, 1, 0]}, {"kv_groups": [2, 2, 1]}]},
    "drops": {"levels": [{"drop_attention": [0, 1], "drop_ffn": [2]}, {"drop_attention": [1]}, {"drop_attention": []}]},
    "mixed": {
        "levels": [
            {"layers": 1, "ffn": 5, "kv_groups": 1},
            {"layers": 2, "ffn": 30, "kv_groups": 1},
            {"ffn": [48, 30, 11]},
        ]
    },
}
LEVELS = [f"{name}:{k}" for name, ladder in LADDERS.items() for k in range(len(ladder["levels"]))]
COMMON = [5, 3, 60, 41, 41, 0, 17, 22, 9, 31, 4, 56]
"""Prompts begin with a part of it, so that prefixes are met again."""


@dataclass(frozen=True)
class Case:
    """One request: its level, its prompt and how it is served."""

    level: str
    prompt: list[int]
    chunk_sizes: list[int]
    arrives: int
    """Step of its first chunk."""
    num_new: int
    shares_prefix: bool


@st.composite
def cases(draw: st.DrawFn, levels: Sequence[str] = LEVELS) -> Case:
    return Case(
        level=draw(st.sampled_from(levels)),
        prompt=COMMON[: draw(st.integers(0, 12))] + draw(st.lists(st.integers(0, 60), min_size=1, max_size=4)),
        chunk_sizes=draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)),
        arrives=draw(st.integers(0, 4)),
        num_new=draw(st.integers(1, 4)),
        shares_prefix=draw(st.booleans()),
    )


class Served:
    """A request on its way: its next chunk, the logits it has got by position, its greedy tokens."""

    def __init__(self, case: Case, model: LoadedModel, loop: Any) -> None:
        self.case, self.new_tokens, self.logits = case, list[int](), dict[int, Tensor]()
        self.stream = loop.open(model.ladders.subnet(case.level), case.prompt if case.shares_prefix else ())
        self._num_chunks = 0

    @property
    def is_done(self) -> bool:
        return len(self.new_tokens) == self.case.num_new

    def next_chunk(self) -> list[int]:
        if rest := self.case.prompt[len(self.stream.token_ids) :]:
            self._num_chunks += 1
            return rest[: self.case.chunk_sizes[self._num_chunks % len(self.case.chunk_sizes)]]
        return [self.new_tokens[-1]]

    def take(self, logits_V: Tensor) -> None:
        position = len(self.stream.token_ids) - 1
        self.logits[position] = logits_V
        if position + 1 >= len(self.case.prompt):
            self.new_tokens.append(int(logits_V.argmax()))


def serve(model: LoadedModel, loop: Any, batch: Sequence[Case]) -> list[Served]:
    """All requests together, each from the step it arrives at."""
    served: dict[int, Served] = {}
    step = 0
    while len(served) < len(batch) or not all(each.is_done for each in served.values()):
        for index, case in enumerate(batch):
            if case.arrives == step:
                served[index] = Served(case, model, loop)
        active = [each for each in served.values() if not each.is_done]
        if active:
            logits = loop.step([(each.stream, each.next_chunk()) for each in active])
            for each, row in zip(active, logits, strict=True):
                each.take(row)
        step += 1
    return [served[index] for index in range(len(batch))]


def serve_alone(model: LoadedModel, loop_type: Any, case: Case) -> Served:
    alone = Case(case.level, case.prompt, case.chunk_sizes, 0, case.num_new, shares_prefix=False)
    return serve(model, loop_type(model.decoder, num_pages=40), [alone])[0]


def assert_same(together: Served, alone: Served) -> None:
    assert together.new_tokens == alone.new_tokens
    positions = together.logits.keys() & alone.logits.keys()
    assert {p for p in alone.logits if p >= len(alone.case.prompt) - 1} <= positions
    for position in positions:
        torch.testing.assert_close(together.logits[position], alone.logits[position], atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request: Any, make_checkpoint: Any) -> LoadedModel:
    fields: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
    if request.param == "mistral":
        fields = {"sliding_window": 5}
    return open_model(str(make_checkpoint(request.param, ladders=LADDERS, **fields).path))


def check_together(model: LoadedModel, loop_type: Any, batch: Sequence[Case], data: st.DataObject) -> None:
    coin = random.Random(data.draw(st.integers(0, 99), label="seed of the wide rule"))
    chance = data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="chance of wide")
    decoder = model.decoder.prepare_serving(data.draw(st.sampled_from([0, 20_000, 1 << 24]), label="packed bytes"))
    decoder.run_wide = lambda *_: coin.random() < chance
    loop = loop_type(decoder, page_tokens=data.draw(st.sampled_from([3, 8, 32]), label="page tokens"), num_pages=250)
    if data.draw(st.booleans(), label="scattered"):
        loop.scatter_pages()
    with pytest.MonkeyPatch.context() as patch:
        shared = data.draw(st.sampled_from([0, 1024, 1 << 40]), label="shared call bytes")
        patch.setattr(attention, "SHARED_CALL_BYTES", shared)
        together = serve(model, loop, batch)
    decoder.run_wide = None
    for each in together:
        assert_same(each, serve_alone(model, loop_type, each.case))


@settings(deadline=None, max_examples=20)
@given(batch=st.lists(cases(), min_size=2, max_size=5), data=st.data())
def test_a_mix_of_any_levels_of_any_ladders(
    batch: list[Case], data: st.DataObject, model: LoadedModel, serving_loop: Any
) -> None:
    check_together(model, serving_loop, batch, data)


@settings(deadline=None, max_examples=8)
@given(ladder=st.sampled_from(sorted(LADDERS)), data=st.data())
def test_a_mix_of_the_levels_of_one_ladder(
    ladder: str, data: st.DataObject, model: LoadedModel, serving_loop: Any
) -> None:
    levels = [level for level in LEVELS if level.startswith(f"{ladder}:")]
    batch = data.draw(st.lists(cases(levels), min_size=2, max_size=5))
    subnets = sorted((model.ladders.subnet(case.level) for case in batch), key=lambda subnet: -subnet.num_units)
    for plan in plan_layers(subnets, [1] * len(subnets)):
        assert all(isinstance(span.rows, int) for span in (*plan.attention, *plan.ffn))
    check_together(model, serving_loop, batch, data)


@pytest.mark.parametrize("levels", [["heads:2", "other-heads:1"], ["other-heads:0", "heads:0"], ["drops:0", "heads:1"]])
@pytest.mark.parametrize("prompt_tokens", [1, 9])
def test_ladders_whose_order_disagrees_in_some_layers_only(
    levels: list[str], prompt_tokens: int, model: LoadedModel, serving_loop: Any
) -> None:
    batch = [Case(level, COMMON[: 1 + i * (prompt_tokens - 1)], [20], 0, 4, False) for i, level in enumerate(levels)]
    for order in (batch, batch[::-1]):
        for each in serve(model, serving_loop(model.decoder), order):
            assert_same(each, serve_alone(model, serving_loop, each.case))


def test_those_ladders_mix_prefixes_and_gathered_rows(model: LoadedModel) -> None:
    first, second = model.ladders.subnet("heads:2"), model.ladders.subnet("other-heads:1")
    kinds = [
        {type(span.rows) for plan in plan_layers(subnets, [2, 3]) for span in plan.attention}
        for subnets in ([first, second], [second, first])
    ]
    assert {int, Tensor} in kinds


def test_a_request_that_overflows_spoils_no_other(model: LoadedModel, serving_loop: Any) -> None:
    good = [Case(level, COMMON[3:6], [20], 0, 3, False) for level in ("other-heads:1", "width:0", "drops:1")]
    alone = [serve_alone(model, serving_loop, case) for case in good]
    unused = next(token for token in range(61) if not any(token in one.stream.token_ids for one in alone))
    bad = Case("heads:2", [unused] * 11, [20], 0, 3, False)
    embedding = model.decoder.model.embed_tokens.weight
    kept = embedding[unused].clone()
    embedding[unused] = torch.inf
    together = serve(model, serving_loop(model.decoder), [bad, *good])
    embedding[unused] = kept
    assert together[0].logits[10].isnan().all()
    for each, expected in zip(together[1:], alone, strict=True):
        assert_same(each, expected)
