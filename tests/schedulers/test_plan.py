from __future__ import annotations

import pytest

from stepwell.schedulers.plan import Slice, StepPlan


@pytest.mark.parametrize(("num_tokens", "pages"), [(0, 0), (1, 3), (4, 3), (5, 6), (8, 6)])
def test_pages_are_whole_blocks_in_every_layer_of_the_point(make, num_tokens: int, pages: int) -> None:
    assert make.capacity(page_tokens=4).pages_for(make.points[2], num_tokens) == pages


def test_a_plan_counts_its_tokens(make) -> None:
    assert StepPlan().num_tokens == 0
    assert StepPlan([Slice(make.request(), n, make.points[0]) for n in (1, 7)]).num_tokens == 8
