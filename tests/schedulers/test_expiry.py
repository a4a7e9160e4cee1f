"""What is dropped when: everything before its first step, only hopeless late work after it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.expiry import drop_reason, expires_s
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
