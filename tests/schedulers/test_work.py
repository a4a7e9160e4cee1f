"""Rows of work, what of them is due by when, and the places it is checked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.demand import Demand, standing, work_of
from stepwell.schedulers.work import AT_ONCE_S, PROMPT_DUE_S, TOKENS, check_times, table


def due(work, *times: float) -> tuple[list[float], list[float]]:
    """Tokens and prompt rows due by ``times``, of all requests."""
    demand = Demand(work, np.array(times))
    ones = np.ones((1, len(work)))
    tokens = demand.seconds(ones, 0 * ones)[:, 0]
    rows = demand.seconds(0 * ones, ones * work[:, 0])[:, 0]
    return tokens.round(6).tolist(), rows.tolist()


def test_tokens_are_due_at_a_steady_rate_after_the_prompt(make) -> None:
    work = work_of([], [make.request(prompt_tokens=8, max_tokens=5, ttft_s=1.0, tpot_s=0.5)])
    assert due(work, 0.9, 1.0, 1.5, 2.0, 3.0, 99.0) == ([0, 0, 1, 2, 4, 4], [0, 8, 8, 8, 8, 8])


def test_an_end_to_end_deadline_makes_all_due_at_once(make) -> None:
    work = work_of([], [make.request(prompt_tokens=8, max_tokens=5, deadline_s=2.0)])
    assert due(work, 2.0 - 2 * AT_ONCE_S, 2.0) == ([0, 4], [0, 8])


def test_nothing_is_due_without_an_slo(make) -> None:
    assert due(work_of([], [make.request()]), 1e9) == ([0], [0])


def test_what_is_generated_is_no_longer_due(make) -> None:
    slo = {"ttft_s": 1.0, "tpot_s": 0.5, "max_tokens": 5}
    due_s, row = standing(make.decoding(generated_tokens=2, **slo))
    assert due_s == 2.0
    assert due(table([row]), 1.9, 2.0, 2.5, 9.0) == ([0.8, 1, 2, 3], [0, 0, 0, 0])


def test_a_half_read_prompt_is_due_with_its_token(make) -> None:
    request = make.request(running=True, prompt_tokens=8, computed_tokens=5, ttft_s=1.0, tpot_s=0.5, max_tokens=3)
    due_s, row = standing(request)
    assert due_s == 1.0
    assert due(table([row]), 0.9, 1.0, 2.0) == ([0, 0, 2], [0, 3, 3])


def test_without_a_time_to_first_token_the_count_starts_at_the_first_token(make) -> None:
    due_s, row = standing(make.decoding(tpot_s=0.5, first_token_s=4.0, max_tokens=3))
    assert due_s == 4.5
    assert due(table([row]), 4.5, 5.0) == ([1, 2], [0, 0])


times = st.one_of(st.just(math.inf), st.integers(1, 9).map(float))


@given(
    ttft=times, tpot=times, deadline=times, prompt=st.integers(1, 9), tokens=st.integers(1, 6), at=st.integers(0, 80)
)
def test_a_row_is_never_more_lenient_than_the_due_times(make, ttft, tpot, deadline, prompt, tokens, at) -> None:
    request = make.request(prompt_tokens=prompt, max_tokens=tokens, ttft_s=ttft, tpot_s=tpot, deadline_s=deadline)
    if ttft == math.inf and tpot < math.inf:
        request.first_token_s = math.inf
    (due_tokens,), (due_rows,) = due(work_of([], [request]), float(at))
    num_due = sum(min(request.token_due_s(k), request.deadline_s) <= at for k in range(tokens))
    assert due_rows == (prompt if num_due else 0)
    if tpot < math.inf and ttft + (tokens - 1) * tpot > deadline:
        assert due_tokens >= (tokens - 1 if at >= deadline else 0)
    else:
        assert due_tokens >= max(num_due - 1, 0) - 1e-6


@pytest.mark.parametrize("num", [1, 5, 16, 17, 40, 333])
def test_checks_are_the_earliest_and_a_sample_with_the_last(make, num: int) -> None:
    work = work_of([], [make.request(ttft_s=1.0 + i, max_tokens=1) for i in range(num)])
    found = check_times(work, 0.5, 16).tolist()
    assert found == sorted(found)
    assert len(found) <= 16
    every = sorted(work[:, PROMPT_DUE_S].tolist())
    assert found[:8] == every[:8] if num > 8 else {*found} >= {*every}
    assert found[-1] == every[-1]
    assert check_times(work, 1e9, 16).tolist() == []
    assert work[:, TOKENS].tolist() == [0.0] * num
