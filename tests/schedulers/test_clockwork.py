"""Clockwork: full quality, and nothing begun in vain. A row takes 4 ms at full quality, a step 1 ms besides."""

from __future__ import annotations

import pytest

from stepwell.schedulers.clockwork import Clockwork
from stepwell.schedulers.plan import DropReason, Limits


def plan(make, waiting=(), running=(), now=0.0, **limits):
    return Clockwork(Limits(**limits)).plan(now, list(waiting), list(running), make.capacity(), make.model())


@pytest.mark.parametrize(("ttft_s", "kept"), [(0.05, True), (0.04, False)])
def test_what_cannot_be_in_time_is_dropped_before_it_starts(make, ttft_s: float, kept: bool) -> None:
    request = make.request(prompt_tokens=10, max_tokens=1, ttft_s=ttft_s)
    result = plan(make, [request])
    assert [d.request for d in result.drops if d.reason is DropReason.HOPELESS] == ([] if kept else [request])
    assert [s.point.level for s in result.slices] == ([2] if kept else [])


def test_a_deadline_counts_all_tokens(make) -> None:
    short, long = (make.request(prompt_tokens=10, max_tokens=n, deadline_s=0.1) for n in (5, 20))
    assert [d.request for d in plan(make, [short, long]).drops] == [long]


def test_nobody_joins_who_would_slow_the_others_down_too_much(make) -> None:
    newcomer = make.request(prompt_tokens=2, ttft_s=1.0)
    for tpot_s, joins in ((0.020, True), (0.008, False)):
        running = make.decoding(ttft_s=1.0, tpot_s=tpot_s)
        assert (newcomer in [s.request for s in plan(make, [newcomer], [running]).slices]) == joins


def test_prompts_get_what_a_step_has_left_until_the_next_token_is_due(make) -> None:
    running = make.decoding(ttft_s=0.1, tpot_s=0.1)  # due at 0.2; its step takes 5 ms
    result = plan(make, [make.request(prompt_tokens=200, ttft_s=9.0)], [running])
    assert {s.request is running: s.num_tokens for s in result.slices} == {True: 1, False: 48}


def test_a_prompt_waits_if_those_before_it_make_it_late(make) -> None:
    first, second = (make.request(prompt_tokens=10, max_tokens=1, ttft_s=t) for t in (0.06, 0.07))
    result = plan(make, [first, second])
    assert [s.request for s in result.slices] == [first]
    assert not result.drops, "it may get its chance yet"
