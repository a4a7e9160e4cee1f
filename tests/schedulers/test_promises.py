"""Refusing at once: the boundary between what fits and what does not, by hand.

At the smallest point a row takes 0.1 ms, and a step 1 ms besides. Work can begin when the running step ends, STEP_S
after the promises were made.
"""

from __future__ import annotations

import math

import pytest

from stepwell.schedulers.book import SHARE
from stepwell.schedulers.fill import STEP_S
from stepwell.schedulers.plan import DropReason, Limits
from stepwell.schedulers.promises import STALE_S
from stepwell.schedulers.request import Phase
from stepwell.schedulers.staircase import Staircase


def promises(make, waiting=(), running=(), now=0.0, **limits):
    return Staircase(Limits(**limits)).admission(now, list(waiting), list(running), make.model(row_s=0.0004))


def room_s(until_s: float) -> float:
    return SHARE * (until_s - STEP_S)


def test_requests_are_accepted_until_the_time_is_spent(make) -> None:
    admission = promises(make, running=[make.decoding()])
    answers = [admission.admit(0.0, make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1)) for _ in range(9)]
    num_accepted = int(room_s(0.1) / 0.0102)
    assert [answer is None for answer in answers] == [True] * num_accepted + [False] * (9 - num_accepted)


def test_a_refusal_says_when_it_would_fit(make) -> None:
    admission = promises(make, running=[make.decoding()])
    for _ in range(6):
        assert admission.admit(0.0, make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1)) is None
    drop = admission.admit(0.0, make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1))
    assert drop is not None
    assert drop.reason is DropReason.HOPELESS
    own_steps_s = 700 / 512 * 0.001
    assert drop.retry_after_s == pytest.approx(0.070 + own_steps_s - room_s(0.1))
    later = make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1 + drop.retry_after_s / SHARE + 0.001)
    assert admission.admit(0.0, later) is None


def test_what_is_impossible_even_alone_gets_no_hint(make) -> None:
    admission = promises(make)
    drop = admission.admit(0.0, make.request(prompt_tokens=2000, ttft_s=0.1))
    assert drop is not None
    assert drop.retry_after_s is None
    assert admission.admit(0.0, make.request(prompt_tokens=200, ttft_s=0.1)) is None


def test_counted_requests_take_their_share(make) -> None:
    counted, fresh = promises(make), promises(make)
    big = make.request(prompt_tokens=600, max_tokens=1, ttft_s=0.1)
    counted.count(big)
    small = make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1)
    assert fresh.admit(0.0, small) is None
    assert counted.admit(0.0, small) is not None
    after = promises(make)
    assert after.admit(0.0, small) is None
    after.count(big)
    assert after.admit(0.0, small) is not None, "also when the sums are made already"


def test_work_that_is_due_later_refuses_nobody_unless_its_promise_would_break(make) -> None:
    backlog = [make.request(prompt_tokens=5000, max_tokens=1, ttft_s=10.0) for _ in range(10)]
    assert promises(make, backlog).admit(0.0, make.request(prompt_tokens=300, max_tokens=1, ttft_s=0.1)) is None
    full = [make.request(prompt_tokens=4640, max_tokens=1, ttft_s=10.0) for _ in range(20)]  # 9.461 of 9.476 s
    assert promises(make, full).admit(0.0, make.request(prompt_tokens=300, max_tokens=1, ttft_s=0.1)) is not None


def test_tokens_after_the_first_count(make) -> None:
    flow = {"ttft_s": 0.01, "tpot_s": 0.01, "max_tokens": 500, "may_switch": True}
    flows = [make.decoding(**flow) for _ in range(60)]  # 7 of every 10 ms
    admission = promises(make, running=flows, max_running=1000)
    assert admission.admit(0.0, make.request(prompt_tokens=2, max_tokens=500, ttft_s=1.0, tpot_s=0.01)) is None
    drops = [
        admission.admit(0.0, make.request(prompt_tokens=2, max_tokens=500, ttft_s=1.0, tpot_s=0.01)) for _ in range(40)
    ]
    assert drops[-1] is not None


def test_a_floor_and_a_pinned_request_cost_what_they_cost(make) -> None:
    for points, num in ((make.points, 6), (make.points[1:], 3), (make.points[2:], 1)):
        admission = promises(make, running=[make.decoding()])
        requests = [make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1, points=points) for _ in range(8)]
        assert sum(admission.admit(0.0, request) is None for request in requests) == num


def test_without_an_slo_nobody_is_refused(make) -> None:
    admission = promises(make, [make.request(prompt_tokens=50000, ttft_s=0.1)])
    assert admission.admit(0.0, make.request(prompt_tokens=50000)) is None


def test_seats_are_part_of_the_promise(make) -> None:
    running = [make.decoding(max_tokens=4000) for _ in range(4)]  # without any SLO: only their seats matter
    request = make.request(prompt_tokens=2, max_tokens=1, ttft_s=0.5)
    assert promises(make, running=running, max_running=5).admit(0.0, request) is None
    drop = promises(make, running=running, max_running=4).admit(0.0, request)
    assert drop is not None
    assert drop.retry_after_s is not None
    assert promises(make, running=running, max_running=4).admit(0.0, make.request(ttft_s=30.0)) is None


def test_seats_are_free_when_those_with_the_least_left_have_left(make) -> None:
    def fits(tokens_left, *tokens_waiting):
        running = [make.decoding(max_tokens=1 + tokens) for tokens in tokens_left]
        waiting = [make.request(prompt_tokens=2, max_tokens=1 + tokens, ttft_s=0.1) for tokens in tokens_waiting]
        admission = promises(make, waiting, running, max_running=4)
        return admission.admit(0.0, make.request(prompt_tokens=2, max_tokens=1, ttft_s=0.5)) is None

    assert fits([50] * 4)
    assert fits([10, 4000, 4000, 4000]), "one leaves soon, however long the others take"
    assert not fits([400] * 4), "nobody leaves in time, though it is enough for a quarter of what all have to do"
    assert not fits([10, 4000, 4000, 4000], 4000), "that one's seat is taken"
    assert fits([10, 4000, 4000, 4000], 10, 10), "by some who leave soon themselves"
    assert not fits([10, 4000, 4000, 4000], *[10] * 60), "which adds up"


def test_time_passes_for_promises_too(make) -> None:
    admission = promises(make, running=[make.decoding()])
    request = make.request(prompt_tokens=500, max_tokens=1, ttft_s=0.1)
    assert admission.admit(0.06, request) is not None
    assert admission.admit(0.0, request) is None
    assert math.isfinite(request.first_due_s)


def test_who_is_over_counts_no_more(make) -> None:
    members = [make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1) for _ in range(20)]
    newcomer = make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1)
    assert promises(make, members).admit(0.0, newcomer) is not None
    for member in members:
        member.phase = Phase.DONE
    assert promises(make, members).admit(0.0, newcomer) is None


def test_what_would_arrive_late_is_refused(make) -> None:
    model = make.model(row_s=0.0004)
    for way_s, fits in ((0.0, True), (0.02, False)):
        model.answer_way.observe([way_s] * 64)
        admission = Staircase(Limits()).admission(0.0, [], [], model)
        request = make.request(prompt_tokens=700, max_tokens=1, ttft_s=0.09)
        assert (admission.admit(0.0, request) is None) == fits


def test_an_idle_engine_finds_out_whether_it_is_as_slow_as_it_believes(make) -> None:
    def admission(**model):
        return Staircase(Limits()).admission(0.0, [], [], make.model(row_s=0.0004, **model))

    def request(prompt_tokens=100):
        return make.request(prompt_tokens=prompt_tokens, max_tokens=1, ttft_s=STALE_S + 0.1, priority=2)

    slow = admission(slowness=30.0)
    assert slow.admit(0.0, make.request(prompt_tokens=100, max_tokens=1, ttft_s=0.1)) is not None, "it has just run"
    assert slow.admit(STALE_S, request()) is None
    assert slow.admit(STALE_S, request()) is not None, "one is enough to find out"
    assert admission(slowness=30.0).admit(STALE_S, request(1000)) is not None, "it cannot be so much faster"
