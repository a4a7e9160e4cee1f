"""What is due by when, as a row of numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.request import SLO, OperatingPoint, Phase, Request
from stepwell.schedulers.roll import work_left
from stepwell.schedulers.work import END_S, OFFSET, RATE, TOKENS, row

POINTS = (OperatingPoint(1.0, 1.0, "depth", 0),)
seconds = st.floats(0.01, 100.0)


def due_by(made: tuple[float, ...], at_s: float) -> float:
    return min(max(made[RATE] * at_s + made[OFFSET], 0.0), made[TOKENS])


@given(st.integers(1, 200), seconds, seconds, seconds | st.just(math.inf))
def test_nothing_is_due_later_than_was_asked(tokens, next_due_s, tpot_s, deadline_s) -> None:
    made = row(10, next_due_s / 2, tokens, next_due_s, tpot_s, deadline_s, 10)
    for k in range(1, tokens + 1):
        asked_s = min(next_due_s + (k - 1) * tpot_s, deadline_s)
        assert due_by(made, asked_s) >= k - 1e-6 * k
    assert made[END_S] <= deadline_s


def test_a_hard_deadline_before_the_last_token_does_not_cancel_the_pace() -> None:
    """A client's gRPC deadline bounds the whole answer; its tokens are due one by one all the same."""
    request = Request("r", 0.0, SLO(ttft_s=10.0, tpot_s=1.0), POINTS, 5, 101, hard_deadline_s=60.0)
    request.phase, request.point, request.computed_tokens = Phase.RUNNING, POINTS[0], 6
    request.known_tokens, request.generated_tokens, request.first_token_s = 7, 2, 3.0
    left = work_left([request], [])
    assert request.next_due_s == 12.0
    assert 11.0 < left.due_s[0] <= 12.0
    assert left.work[0][END_S] == pytest.approx(60.0)
    assert left.work[0][TOKENS] == 99
