from __future__ import annotations

import pytest

from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import create_policy


@pytest.mark.parametrize(("name", "level"), [("fixed", 2), ("fixed:max", 2), ("fixed:min", 0), ("fixed:depth:1", 1)])
def test_the_point_comes_after_the_colon(make, name: str, level: int) -> None:
    result = create_policy(name, Limits()).plan(0.0, [make.request()], [], make.capacity(), None)
    assert result.slices[0].point is make.points[level]


def test_who_does_not_allow_it_runs_as_near_as_it_can(make) -> None:
    high, low, started = make.request(points=make.points[1:]), make.request(points=make.points[:1]), make.decoding()
    policy = create_policy("fixed:depth:0", Limits())
    served = {s.request: s.point.level for s in policy.plan(0.0, [high, low], [started], make.capacity(), None).slices}
    assert served == {high: 1, low: 0, started: 2}


@pytest.mark.parametrize("argument", ["depth", "depth:", ":3", "depth:x", "best"])
def test_nonsense_is_refused_with_the_remedy(argument: str) -> None:
    with pytest.raises(ValueError, match=r"policy fixed: got operating point .*write fixed:LADDER:LEVEL"):
        create_policy(f"fixed:{argument}", Limits())


def test_other_policies_take_no_argument() -> None:
    with pytest.raises(ValueError, match="policy staircase: takes no argument, got 'staircase:3'"):
        create_policy("staircase:3", Limits())
