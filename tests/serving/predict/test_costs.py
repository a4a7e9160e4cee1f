"""What batches of items are predicted to cost, and what the planner makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.ladder import Architecture, SubNetwork, parse_ladders
from stepwell.models.one_shot import Item
from stepwell.schedulers.plan import Capacity, Limits, Slice
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving import predictor_costs
from stepwell.serving.predictor_costs import PointCurves, ascending, measure_points

TOKENS = 65
BUDGETS = (0.25, 0.5, 1.0)
LADDERS = parse_ladders(
    {
        "format": 1,
        "ladders": {
            "merge": {"reducer": "merge", "levels": [{"budget": b, "quality": 0.5 + b / 2} for b in BUDGETS]},
            "depth": {"levels": [{"layers": 1, "quality": 0.5}, {}]},
        },
    },
    Architecture(2, 4, 64, frozenset({"merge"})),
)
DEPTH = replace(LADDERS, ladders={"depth": LADDERS.ladders["depth"]}, default="depth")
POINTS = tuple(OperatingPoint(b, 0.5 + b / 2, "merge", level, b) for level, b in enumerate(BUDGETS))
CURVES = PointCurves(
    num_tokens=(TOKENS, 2 * TOKENS, 4 * TOKENS),
    # Of 1, 2 and 4 images. The smallest batch of the middle point was unlucky: slower than the full model.
    seconds={
        "merge:0@0.25": (0.003, 0.004, 0.006),
        "merge:1@0.5": (0.0065, 0.008, 0.01),
        "merge:2": (0.006, 0.01, 0.018),
    },
    shares={"merge:0@0.25": 0.25, "merge:1@0.5": 0.5, "merge:2": 1.0, "depth:0": 0.5, "depth:1": 1.0},
)
MODEL = CURVES.cost_model(LADDERS)


def request(num_items: int = 1, points=POINTS, **slo) -> Request:
    return Request("r", 0.0, SLO(**slo), tuple(points), num_items * TOKENS, 1, unit_tokens=TOKENS)


def seconds(*batch: tuple[OperatingPoint, int]) -> float:
    return MODEL.raw_s([Slice(request(n), n * TOKENS, point) for point, n in batch])


def test_what_was_measured_is_predicted() -> None:
    for items, at in ((1, 0), (2, 1), (4, 2)):
        assert seconds((POINTS[0], items)) == pytest.approx(CURVES.seconds["merge:0@0.25"][at])
    assert seconds((POINTS[2], 2)) == pytest.approx(0.01)
    assert seconds((POINTS[2], 4)) == pytest.approx(0.018)
    assert seconds((POINTS[0], 3)) == pytest.approx(0.005)


def test_two_that_are_in_the_wrong_order_share_their_mean() -> None:
    for point in POINTS[1:]:
        assert seconds((point, 1)) == pytest.approx((0.0065 + 0.006) / 2)


@given(st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=1, max_size=4))
def test_ascending_rows_are_the_closest_there_are(rows) -> None:
    before = np.array(rows)
    after = ascending(before)
    assert (np.diff(after) >= 0).all()
    assert after.sum(axis=1) == pytest.approx(before.sum(axis=1))
    for candidate in (np.sort(before), np.maximum.accumulate(before, axis=1)):
        assert ((after - before) ** 2).sum() <= ((candidate - before) ** 2).sum() + 1e-9


def test_a_batch_that_mixes_points_takes_longer_by_what_was_measured() -> None:
    alone = [seconds((point, 1)) for point in POINTS]
    unmixed = MODEL.raw_s([Slice(request(), TOKENS, point) for point in POINTS])
    mixing = replace(CURVES, mixed={"1": unmixed + 0.004, "2": 1.0, "4": 0.0}).cost_model(LADDERS)
    assert mixing.mixing_s == pytest.approx(0.002)
    assert mixing.raw_s([Slice(request(), TOKENS, point) for point in POINTS]) == pytest.approx(unmixed + 0.004)
    assert [mixing.raw_s([Slice(request(), TOKENS, point)]) for point in POINTS] == alone


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=5))
def test_to_keep_more_or_to_add_something_never_costs_less(batch) -> None:
    now = seconds(*((POINTS[level], n) for level, n in batch))
    assert now <= seconds(*((POINTS[min(level + 1, 2)], n) for level, n in batch)) + 1e-12
    assert now <= seconds(*((POINTS[level], n) for level, n in [*batch, (0, 1)])) + 1e-12


def test_other_ladders_cost_their_share() -> None:
    half, full = (OperatingPoint(c, 1.0, "depth", level) for level, c in enumerate((0.5, 1.0)))
    costs = [MODEL.raw_s([Slice(request(4, [p]), 4 * TOKENS, p)]) - MODEL.overhead_s for p in (half, full)]
    assert costs[0] == pytest.approx(costs[1] / 2)


@pytest.mark.parametrize(("slo_ms", "expected"), [(1000, "merge:2"), (40, "merge:0@0.25")])
def test_the_deadline_decides_how_many_tokens_are_kept(slo_ms: float, expected: str) -> None:
    """Sixteen images that are due together: 4 of them take 18 ms at full budget, 6 ms at a quarter."""
    policy = create_policy("staircase", Limits(max_step_tokens=8 * TOKENS))
    waiting = [request(2, deadline_s=slo_ms / 1e3) for _ in range(8)]
    plan = policy.plan(0.0, waiting, [], Capacity(1, 1, 1, {p.name: 0 for p in POINTS}), MODEL)
    assert {s.point.name for s in plan.slices} == {expected}
    assert not plan.drops


def test_a_quality_floor_is_kept_to() -> None:
    policy = create_policy("staircase", Limits(max_step_tokens=8 * TOKENS))
    floored = [p for p in POINTS if p.quality >= 0.7]
    waiting = [request(2, floored, deadline_s=0.08, min_quality=0.7) for _ in range(4)]
    plan = policy.plan(0.0, waiting, [], Capacity(1, 1, 1, {p.name: 0 for p in POINTS}), MODEL)
    assert {s.point.quality for s in plan.slices} <= {0.75, 1.0}


TEXT, LONG = 64, 512
TEXT_POINTS = tuple(OperatingPoint(c, q, "depth", level) for level, (c, q) in enumerate(((0.5, 0.5), (1.0, 1.0))))
PAIR_S, CALL_S = 1e-6, 1e-3


def text_s(level: int, lengths: Sequence[int]) -> float:
    """A machine by hand: 10 ms a step, then for each half of the layers 0.1 ms a token, pairs, and calls."""
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    return 0.01 + (level + 1) * (1e-4 * tokens + PAIR_S * pairs + CALL_S * len(set(lengths)))


class TextModel:
    """Its clock is the tests'. Batches run as their first item does."""

    now = 0.0

    def run(self, items: Sequence[Item], wanted: Sequence[str]) -> None:
        self.now += text_s(len(items[0].subnet.kv_groups) - 1, [len(item.data) for item in items])


@pytest.fixture
def text_curves(monkeypatch: pytest.MonkeyPatch) -> PointCurves:
    """Measured on that machine."""
    model = TextModel()
    monkeypatch.setattr(predictor_costs.time, "perf_counter", lambda: model.now)

    def make_item(name: str, num_tokens: int) -> Item:
        level = int(name[-1])
        return Item(torch.zeros(num_tokens or TEXT), SubNetwork((1,) * (level + 1), (1,) * (level + 1)))

    ladder, shares = LADDERS.ladders["depth"], {"depth:0": 0.5, "depth:1": 1.0}
    found = measure_points(model, ladder, shares, make_item, (), TEXT, 1024, LONG)  # type: ignore[arg-type]
    return replace(found, mixed={})


def text_request(level: int, *lengths: int, **slo: float) -> Request:
    """One request of texts."""
    tokens = sum(lengths)
    reach = sum(n * n for n in lengths) / tokens
    points = (TEXT_POINTS[level],)
    return Request("", 0.0, SLO(**slo), points, tokens, 1, unit_tokens=tokens, reach_tokens=reach)


def text_slice(level: int, *lengths: int) -> Slice:
    return Slice(text_request(level, *lengths), sum(lengths), TEXT_POINTS[level])


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("lengths", [(64,), (100,), (512,), (30, 50, 70, 90), (16, 400, 200)])
def test_texts_of_any_length_are_predicted(text_curves, level, lengths) -> None:
    """From typical, long and ragged ones: the quadratic part of attention, and a call for each length."""
    assert text_curves.pair_s["depth:1"] == pytest.approx(2 * PAIR_S, rel=1e-3)
    assert text_curves.call_s["depth:1"] == pytest.approx(2 * CALL_S, rel=1e-3)
    predicted = text_curves.cost_model(DEPTH).raw_s([text_slice(level, length) for length in lengths])
    assert predicted == pytest.approx(text_s(level, lengths), rel=0.02)


def test_texts_of_one_request_attend_each_to_itself(text_curves) -> None:
    model = text_curves.cost_model(DEPTH)
    together = model.raw_s([text_slice(1, 30, 50, 70, 90)])
    apart = model.raw_s([text_slice(1, n) for n in (30, 50, 70, 90)])
    assert together == pytest.approx(apart - 3 * 2 * CALL_S, rel=1e-3)


@pytest.mark.parametrize("name", ["staircase", "slack_fit", "clockwork"])
def test_policies_do_not_take_many_texts_for_a_long_one(text_curves, name) -> None:
    """32 texts of 32 tokens take some 0.3 s; one text of as many tokens would take 2.3 s."""
    policy = create_policy(name, Limits(max_step_tokens=2048))
    waiting = [text_request(1, *[32] * 32, deadline_s=1.5)]
    capacity = Capacity(1, 1, 1, {p.name: 0 for p in TEXT_POINTS})
    plan = policy.plan(0.0, waiting, [], capacity, text_curves.cost_model(DEPTH))
    assert [s.num_tokens for s in plan.slices] == [1024]
    assert not plan.drops
