"""Due times: the cumulative rule for tokens, bounded by the deadlines of the whole answer."""

from __future__ import annotations

import math

import pytest

from stepwell.schedulers.request import OperatingPoint


def test_points_are_named_and_ordered_by_cost() -> None:
    small, budgeted = OperatingPoint(0.25, 0.9, "width", 0), OperatingPoint(0.2, 0.7, "width", 2, 0.5)
    assert (small.name, budgeted.name) == ("width:0", "width:2@0.5")
    assert max(small, budgeted) is small


def test_a_request_needs_a_point(make) -> None:
    with pytest.raises(ValueError, match="points: empty"):
        make.request(points=())


def test_pending_tokens(make) -> None:
    assert make.request(prompt_tokens=8).pending_tokens == 8
    assert make.request(running=True, prompt_tokens=8, computed_tokens=10, generated_tokens=3).pending_tokens == 1


def test_tokens_are_due_cumulatively_after_the_first(make) -> None:
    request = make.request(arrival_s=10.0, ttft_s=1.0, tpot_s=0.25)
    assert [request.token_due_s(k) for k in range(3)] == [11.0, 11.25, 11.5]


def test_without_ttft_the_count_starts_at_the_first_token(make) -> None:
    request = make.request(arrival_s=10.0, tpot_s=0.25, first_token_s=14.0, generated_tokens=1)
    assert request.token_due_s(0) == math.inf
    assert request.token_due_s(2) == 14.5
    assert request.next_due_s == 14.25


def test_without_tpot_only_the_first_token_is_due(make) -> None:
    assert make.request(ttft_s=1.0).next_due_s == 1.0
    assert make.request(ttft_s=1.0, generated_tokens=1).next_due_s == math.inf


@pytest.mark.parametrize(("deadline_s", "hard_s", "due"), [(3.0, math.inf, 13.0), (3.0, 12.0, 12.0), (9.0, 14.0, 14.0)])
def test_the_answer_is_due_at_the_earlier_deadline(make, deadline_s: float, hard_s: float, due: float) -> None:
    request = make.request(arrival_s=10.0, deadline_s=deadline_s, hard_deadline_s=hard_s, ttft_s=8.0)
    assert request.deadline_s == request.next_due_s == due
