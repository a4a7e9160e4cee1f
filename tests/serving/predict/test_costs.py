"""What batches of items are predicted to cost, and what the planner makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.ladder import Architecture, parse_ladders
from stepwell.schedulers.plan import Capacity, Limits, Slice
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.predictor_costs import PointCurves, ascending

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
