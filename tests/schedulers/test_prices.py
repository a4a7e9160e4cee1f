"""The cost model in a few prices, and the levels worth using."""

from __future__ import annotations

import pytest

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.prices import LevelCosts, PriceLists, point_at
from stepwell.schedulers.request import OperatingPoint


def prices(make, points=None) -> LevelCosts:
    points = points or make.points
    model = StepCostModel.linear(points, full_row_s=0.004, overhead_s=0.001)
    return LevelCosts(model, model.ladders[points[0].ladder], points)


def test_a_row_and_a_step(make) -> None:
    mine = prices(make)
    assert mine.row == pytest.approx([0.001, 0.002, 0.004])
    assert mine.fixed_s(5).tolist() == pytest.approx([0.001] * 3)


def test_only_levels_on_the_concave_hull_are_rungs() -> None:
    quality = [0.5, 0.55, 0.8, 0.79, 1.0]
    points = tuple(OperatingPoint((k + 1) / 5, q, "depth", k) for k, q in enumerate(quality))
    assert prices(None, points).rungs == (0, 2, 4)


def test_prices_are_made_once_a_model_and_of_the_ladder_with_a_choice(make) -> None:
    lists, model = PriceLists(), make.model()
    pinned, free = make.request(points=make.points[1:2]), make.request()
    whole = lists.of(model, [pinned, free])
    assert whole.points == make.points
    assert lists.of(model, [pinned]) is whole
    assert lists.of(make.model(), [free]) is not whole
    partial = PriceLists().of(model, [pinned])
    assert partial.rungs == (0,), "nothing is known that would be better"


def test_spans(make) -> None:
    mine = prices(make)
    other = OperatingPoint(0.4, 0.9, "width", 0)
    assert mine.span(make.request()) == (0, 2)
    assert mine.span(make.request(points=make.points[1:])) == (1, 2)
    assert mine.span(make.decoding(point=make.points[1])) == (1, 1)
    assert mine.span(make.request(points=(other,))) == (1, 1), "priced like what costs as much"


def test_the_nearest_allowed_point(make) -> None:
    low, mid, high = make.points
    assert point_at(make.request(), 1) is mid
    assert point_at(make.request(points=(low, high)), 1) is low
    assert point_at(make.request(points=(high,)), 0) is high
    assert point_at(make.decoding(point=mid), 2) is mid


def test_little_time_is_given_away_for_little_quality(make) -> None:
    def stake(*quality: float) -> float:
        return prices(make, tuple(OperatingPoint((k + 1) / 8, q, "depth", k) for k, q in enumerate(quality))).stake

    assert stake(0.5, 0.8, 1.0) == 1.0
    assert stake(0.98, 0.99, 1.0) == pytest.approx(0.508, abs=0.001)
    assert 0.0 < stake(1.0) < stake(0.98, 1.0), "without a choice there is none to give away"
