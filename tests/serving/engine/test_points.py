"""Operating points: cost by hand, quality floors, pins and their errors."""

from __future__ import annotations

import pytest

from stepwell.serving.engine.points import UnitParameters, allowed_points, may_switch, operating_points
from stepwell.serving.errors import RequestError, Status


def names(points) -> list[str]:
    return [point.name for point in points]


def test_cost_is_parameters_per_token_relative_to_the_full_model(fake) -> None:
    points = operating_points(fake.ladders, UnitParameters(attention_group=10, ffn_channel=5, head=40))
    full = 3 * (2 * 10 + 8 * 5) + 40
    assert points["depth:2"].cost == points["width:1"].cost == 1.0
    assert points["depth:0"].cost == pytest.approx((20 + 40 + 40) / full)
    assert points["width:0"].cost == pytest.approx((3 * (20 + 10) + 40) / full)
    assert points["dropped:1"].cost == pytest.approx((full - 20) / full)


def test_every_level_of_every_ladder_is_a_point(fake) -> None:
    num_levels = {"depth": 3, "width": 2, "mixed": 4, "dropped": 2}
    assert set(fake.points) == {f"{ladder}:{level}" for ladder, num in num_levels.items() for level in range(num)}
    assert all(0 < p.cost <= 1 and fake.ladders.resolve(n) == (fake.ladders.ladders[p.ladder], p.level)
               for n, p in fake.points.items())  # fmt: skip


@pytest.mark.parametrize(("floor", "expected"), [(0.0, [0, 1, 2]), (0.5, [1, 2]), (2 / 3, [1, 2]), (1.0, [2])])
def test_the_default_ladder_from_the_floor_up(fake, floor: float, expected: list[int]) -> None:
    allowed = allowed_points(fake.points, fake.ladders, floor, None)
    assert names(allowed) == [f"depth:{level}" for level in expected]


@pytest.mark.parametrize(("pin", "point"), [("width:0", "width:0"), ("max", "depth:2"), ("min", "depth:0")])
def test_a_pin_allows_one_point(fake, pin: str, point: str) -> None:
    assert names(allowed_points(fake.points, fake.ladders, 0.0, pin)) == [point]


@pytest.mark.parametrize("pin", ["depth:3", "depth", "depth:-1", "depth:1@0.5", "lake:0", ""])
def test_an_unknown_point_is_invalid(fake, pin: str) -> None:
    with pytest.raises(RequestError, match="operating_point: ") as refused:
        allowed_points(fake.points, fake.ladders, 0.0, pin)
    assert refused.value.code is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(("pin", "best"), [("width:0", "width:0 has quality 0.25"), (None, "depth:1 has quality 0.6")])
def test_a_floor_nothing_reaches_is_invalid_and_names_the_best(fake, pin: str | None, best: str) -> None:
    points = {name: point for name, point in fake.points.items() if name != "depth:2"}
    with pytest.raises(RequestError, match=rf"min_quality: .*{best}.*, got 0\.9;") as refused:
        allowed_points(points, fake.ladders, 0.9, pin)
    assert refused.value.code is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("points", "allowed"),
    [
        (["depth:0", "depth:1", "depth:2"], True),
        (["depth:0", "depth:2"], True),
        (["mixed:0", "mixed:1", "mixed:2", "mixed:3"], True),
        (["depth:1"], False),
        (["dropped:0", "dropped:1"], False),
        (["depth:2", "width:1"], False),
        ([], False),
    ],
)
def test_a_generation_may_switch_among_levels_that_the_ladder_joins(fake, points: list[str], allowed: bool) -> None:
    assert may_switch(fake.ladders, [fake.points[name] for name in points]) is allowed
