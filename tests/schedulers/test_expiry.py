"""What is dropped when: everything before its first step, only hopeless late work after it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.deadline_order import Line
from stepwell.schedulers.expiry import Expiry, drop_reason, expires_s
from stepwell.schedulers.plan import DropReason

instants = st.one_of(st.just(math.inf), st.integers(1, 20).map(float))


def test_a_waiting_request_expires_with_its_latency_target(make) -> None:
    request = make.request(arrival_s=1.0, deadline_s=2.0)
    assert drop_reason(request, 2.9) is None
    assert drop_reason(request, 3.0) is DropReason.EXPIRED


def test_one_that_has_started_is_finished_late_but_not_beyond_the_hard_deadline(make) -> None:
    request = make.request(running=True, deadline_s=2.0, queue_deadline_s=1.0, hard_deadline_s=5.0)
    assert drop_reason(request, 4.9) is None
    assert drop_reason(request, 5.0) is DropReason.EXPIRED


def test_time_to_first_token_alone_drops_nothing(make) -> None:
    assert drop_reason(make.request(ttft_s=1.0), 100.0) is None


def test_a_queue_timeout_is_told_from_a_deadline(make) -> None:
    assert drop_reason(make.request(queue_deadline_s=1.0), 1.0) is DropReason.QUEUE_TIMEOUT
    assert drop_reason(make.request(queue_deadline_s=1.0, hard_deadline_s=1.0), 1.0) is DropReason.EXPIRED


@given(deadline_s=instants, hard_s=instants, queue_s=instants, running=st.booleans(), now=st.integers(0, 21))
def test_expiry_time_and_drop_agree(make, deadline_s, hard_s, queue_s, running, now) -> None:
    request = make.request(deadline_s=deadline_s, hard_deadline_s=hard_s, queue_deadline_s=queue_s, running=running)
    assert (drop_reason(request, now) is not None) == (now >= expires_s(request))


@given(data=st.data())
def test_what_is_kept_between_steps_changes_nothing(make, data) -> None:
    """The same watch and line, asked again and again while requests come, start and leave."""
    expiry, line = Expiry(), Line()
    waiting, running, now = [], [], 0.0
    for _ in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(["time passes", "arrives", "starts", "leaves"]))
        if kind == "time passes":
            now += data.draw(st.integers(1, 6))
        elif kind == "arrives":
            due_s, hard_s, queue_s = (data.draw(instants) for _ in range(3))
            waiting = [*waiting, make.request(deadline_s=due_s, hard_deadline_s=hard_s, queue_deadline_s=queue_s)]
        elif kind == "starts" and waiting:
            waiting[0].started_s = now
            waiting, running = waiting[1:], [*running, waiting[0]]
        elif running:
            running = running[1:]
        drops, *left = expiry.drop(now, waiting, running)
        due = [r for r in (*waiting, *running) if drop_reason(r, now)]
        assert [drop.request for drop in drops] == due
        assert [drop.reason for drop in drops] == [drop_reason(r, now) for r in due]
        assert [list(group) for group in left] == [[r for r in group if r not in due] for group in (waiting, running)]
        assert line.of(waiting) == sorted(waiting, key=lambda request: request.rank_s)
