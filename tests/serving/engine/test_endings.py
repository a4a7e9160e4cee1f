"""Every way a request can end, and that it ends at the next step with its pages freed."""

from __future__ import annotations

import math

import pytest

from stepwell.schedulers.admission import Admission
from stepwell.schedulers.base import Policy
from stepwell.schedulers.max_quality import MaxQuality
from stepwell.schedulers.plan import Drop, DropReason, Limits, StepPlan
from stepwell.serving.engine.events import FinishEvent, Outcome
from stepwell.serving.engine.step import StepError
from stepwell.serving.errors import RefusedError, RequestError, Status


def ran(world, request: str) -> int:
    """Steps it took part in."""
    return sum(step.request_id == request for _, steps in world.runner.calls for step in steps)


def test_cancelling_takes_effect_at_the_next_step(make_world) -> None:
    world = make_world()
    running, waiting = world.submit(max_tokens=50), world.submit(max_tokens=50)
    world.step()
    world.engine.cancel(running)
    world.submit(request_id="newcomer")
    world.engine.cancel("newcomer")
    world.step()
    for request in (running, "newcomer"):
        end = world.end(request)
        assert (end.outcome, end.finish_reason, end.error.code) == (Outcome.CANCELLED, "cancelled", Status.CANCELLED)
    assert (ran(world, running), ran(world, "newcomer"), ran(world, waiting)) == (1, 0, 2)
    world.run()
    assert world.end(waiting).outcome is Outcome.MET


def test_a_call_that_gives_up_at_its_own_deadline_has_expired(make_world) -> None:
    world = make_world()
    late, early = (world.submit(max_tokens=9, hard_s=seconds) for seconds in (0.5, 2.0))
    world.step()
    world.now = 1.0
    for request in (late, early):
        world.engine.cancel(request)
    world.run()
    assert [world.end(r).outcome for r in (late, early)] == [Outcome.EXPIRED, Outcome.CANCELLED]


def test_cancelling_the_unknown_or_finished_is_harmless(make_world) -> None:
    world = make_world()
    request = world.submit()
    world.run()
    world.engine.cancel(request)
    world.engine.cancel("never seen")
    assert not world.step()


def test_a_client_that_is_gone_frees_its_pages_in_that_step(make_world) -> None:
    events = []

    def gone(event) -> None:
        events.append(event)
        raise ConnectionError("client is gone")

    world = make_world()
    lost, other = world.submit(sink=gone), world.submit()
    world.step()
    assert world.engine.num_running == 1
    world.run()
    [(end, _)] = [pair for pair in world.observer.finished if pair[0].request_id == lost]
    assert end.outcome is Outcome.CANCELLED
    assert len(events) == 1, "it is sent nothing more"
    assert world.end(other).outcome is Outcome.MET


def test_a_running_request_ends_at_its_hard_deadline(make_world, fake) -> None:
    world = make_world()
    request = world.submit([1, 2], 50, hard_s=0.004)
    world.run()
    end = world.end(request)
    assert (end.outcome, end.finish_reason, end.drop_reason) == (Outcome.EXPIRED, "expired", "expired")
    assert end.error.code is Status.DEADLINE_EXCEEDED
    assert max(start for start, _ in world.runner.calls) < 0.004
    streamed = world.tokens(request)
    assert 0 < len(streamed) < 50
    assert streamed == fake.reference([1, 2], "depth:2", len(streamed))


def test_a_running_request_past_its_target_goes_on_and_has_missed(make_world, fake) -> None:
    world = make_world()
    request = world.submit([1, 2], 10, deadline_s=0.004)
    world.run()
    end = world.end(request)
    assert (end.outcome, end.finish_reason, end.error, end.report.slo_met) == (Outcome.MISSED, "length", None, False)
    assert world.tokens(request) == fake.reference([1, 2], "depth:2", 10)


@pytest.mark.parametrize(
    ("bounds", "reason", "message"),
    [
        ({"deadline_s": 0.004}, "expired", "deadline: of 4 ms passed while the request was waiting"),
        ({"hard_s": 0.004}, "expired", "deadline: passed while the request was waiting"),
        ({"queue_s": 0.004}, "queue_timeout", "timeout: the request did not start"),
    ],
)
def test_what_waited_too_long_is_dropped_before_it_is_computed(make_world, bounds, reason: str, message: str) -> None:
    world = make_world(max_running=1)
    first = world.submit(max_tokens=10, hard_s=1.0)
    world.step()
    waiting = world.submit(**bounds)
    world.run()
    end = world.end(waiting)
    assert (end.outcome, end.drop_reason, end.error.code) == (Outcome.EXPIRED, reason, Status.DEADLINE_EXCEEDED)
    assert message in end.error.message
    assert (ran(world, waiting), end.report.operating_point, end.report.ttft_ms) == (0, "", None)
    assert end.report.queue_ms == end.report.total_ms >= 4.0
    assert world.end(first).outcome is Outcome.MET


def test_more_than_may_wait_are_shed_with_a_retry_hint(make_world) -> None:
    world = make_world(max_running=1, max_waiting=2)
    requests = [world.submit() for _ in range(4)]
    world.run()
    ends = [world.end(r) for r in requests]
    assert [e.outcome for e in ends] == [Outcome.MET] * 2 + [Outcome.SHED] * 2
    assert (ends[-1].finish_reason, ends[-1].drop_reason) == ("shed", "queue_full")
    assert ends[-1].error.code is Status.RESOURCE_EXHAUSTED
    assert ends[-1].error.retry_after_ms >= 1
    assert "2 requests wait already" in ends[-1].error.message


@pytest.mark.parametrize(
    ("retry_after_s", "status", "retry_after_ms"),
    [(0.25, Status.RESOURCE_EXHAUSTED, 250), (None, Status.DEADLINE_EXCEEDED, None)],
)
def test_what_the_policy_calls_hopeless_is_shed(make_world, retry_after_s, status, retry_after_ms) -> None:
    class Pessimist(Policy):
        name = "pessimist"

        def plan(self, now, waiting, running, capacity, cost_model) -> StepPlan:
            return StepPlan(drops=[Drop(r, DropReason.HOPELESS, retry_after_s) for r in waiting])

    world = make_world(policy=Pessimist(Limits()))
    request = world.submit()
    assert world.step()
    end = world.end(request)
    assert (end.outcome, end.finish_reason, end.drop_reason) == (Outcome.SHED, "shed", "hopeless")
    assert (end.error.code, end.error.retry_after_ms) == (status, retry_after_ms)


def test_a_runner_fault_that_is_over_costs_nobody_anything(make_world, fake) -> None:
    world = make_world(faults={1})
    requests = [world.submit([n], 5) for n in range(3)]
    world.run()
    assert [world.tokens(request) for request in requests] == [fake.reference([n], "depth:2", 5) for n in range(3)]


@pytest.mark.parametrize("names_culprits", [True, False])
def test_only_the_requests_that_cause_a_fault_fail_and_the_client_is_told_nothing(
    make_world, fake, caplog, names_culprits
) -> None:
    culprits: set[str] = set()

    def run(steps):
        if found := culprits.intersection(step.request_id for step in steps):
            raise StepError("secret", found) if names_culprits else RuntimeError("secret")
        return compute(steps)

    world = make_world()
    compute, world.runner.run = world.runner.run, run
    requests = [world.submit([n], 5) for n in range(7)]
    world.step()
    culprits.update((requests[2], requests[5]))
    world.run()
    for n, request in enumerate(requests):
        end = world.end(request)
        if request in culprits:
            assert (end.outcome, end.finish_reason, end.error.code) == (Outcome.FAILED, "error", Status.INTERNAL)
            assert "secret" not in end.error.message
            assert len(world.tokens(request)) == 1
        else:
            assert world.tokens(request) == fake.reference([n], "depth:2", 5)
    assert "secret" in caplog.text


def test_a_fault_nobody_is_free_of_fails_all(make_world) -> None:
    world = make_world(faults=range(100))
    requests = [world.submit([n], 5) for n in range(4)]
    world.run()
    assert [world.end(request).outcome for request in requests] == [Outcome.FAILED] * 4


def test_pages_of_a_failed_step_are_not_reused(make_world, fake) -> None:
    world, prompt = make_world(faults={0}), list(range(12))
    world.submit(prompt)
    world.run()
    again = world.submit(prompt)
    world.run()
    assert world.end(again).report.cached_tokens == 0
    assert world.tokens(again) == fake.reference(prompt, "depth:2", 4)


def test_a_runner_that_forgets_a_token_is_a_fault(make_world) -> None:
    class Forgetful:
        def run(self, steps):
            return {}

    world = make_world(runner=Forgetful())
    request = world.submit()
    world.run()
    assert world.end(request).outcome is Outcome.FAILED


def test_a_failing_observer_changes_nothing(make_world, fake, monkeypatch, caplog) -> None:
    world = make_world()
    monkeypatch.setattr(world.observer, "step_finished", lambda step: 1 / 0)
    monkeypatch.setattr(world.observer, "request_finished", lambda event, request: 1 / 0)
    request = world.submit([3], 4)
    world.run()
    assert world.tokens(request) == fake.reference([3], "depth:2", 4)
    assert "observer failed" in caplog.text


def test_draining_refuses_newcomers_and_finishes_the_rest(make_world) -> None:
    world = make_world(max_running=1)
    requests = [world.submit() for _ in range(2)]
    world.engine.drain()
    with pytest.raises(RequestError, match="stopping") as refused:
        world.submit()
    assert refused.value.code is Status.UNAVAILABLE
    world.run()
    assert {world.end(r).outcome for r in requests} == {Outcome.MET}


def test_abandoning_answers_everybody(make_world) -> None:
    world = make_world(max_running=1)
    requests = [world.submit(max_tokens=50) for _ in range(2)]
    world.step()
    requests.append(world.submit())
    world.engine.abandon()
    ends = [world.end(r) for r in requests]
    assert {(e.outcome, e.drop_reason, e.error.code) for e in ends} == {
        (Outcome.EXPIRED, "shutdown", Status.UNAVAILABLE)
    }


def test_an_unexpected_error_ends_what_ran_or_else_what_waited(make_world) -> None:
    world = make_world(max_running=1)
    running, waiting = world.submit(max_tokens=50), world.submit()
    world.step()
    world.engine.fail_in_flight()
    assert world.end(running).error.code is Status.INTERNAL
    assert world.events[waiting] == []
    world.engine.fail_in_flight()
    assert world.end(waiting).outcome is Outcome.FAILED


def test_a_plan_nobody_can_be_seated_for_is_an_error_not_a_hang(make_world, fake) -> None:
    world, prompt = make_world(num_pages=12, page_tokens=4), list(range(8))
    world.submit(prompt, 1)
    world.run()
    held = world.cache.open(fake.ladders.subnet("depth:2"))  # somebody else uses the cache: not allowed
    world.cache.reserve(held, 8)
    request = world.submit([*prompt, 1, 2, 3, 4, 5], 2)  # two blocks are cached, two more are not there
    with pytest.raises(RuntimeError, match="no cache pages"):
        world.engine.step()
    assert world.cache.free_pages == 6, "nothing is held by the attempt"
    world.cache.free(held)
    world.engine.fail_in_flight()
    assert world.end(request).outcome is Outcome.FAILED


def test_every_end_is_told_once_to_client_and_observer(make_world) -> None:
    world = make_world(max_waiting=3, faults={3})
    requests = [world.submit(hard_s=h) for h in (math.inf, 0.0, 0.002, math.inf)]
    world.step()
    requests.append(world.submit())
    world.engine.cancel(requests[-1])
    world.run()
    told = {event.request_id: event for event, _ in world.observer.finished}
    assert len(world.observer.finished) == len(told) == len(requests)
    for request in requests:
        assert [e for e in world.events[request] if isinstance(e, FinishEvent)] == [told[request]]


class _Bouncer(Admission):
    """Lets in two at a time."""

    def __init__(self, num_here: int) -> None:
        self.num_here = num_here

    def admit(self, now, request):
        if self.num_here >= 2:
            return Drop(request, DropReason.HOPELESS, retry_after_s=0.25)
        return self.count(request)

    def count(self, request) -> None:
        self.num_here += 1


class _Choosy(MaxQuality):
    def admission(self, now, waiting, running, cost_model, step=None):
        return _Bouncer(len(waiting) + len(running))


def test_a_request_the_policy_refuses_is_told_at_once_and_counted(make_world, fake) -> None:
    world = make_world(policy=_Choosy(Limits()))
    kept = [world.submit([n], 4) for n in range(2)]
    with pytest.raises(RefusedError) as refused:
        world.submit([7], 4, request_id="late")
    assert (refused.value.code, refused.value.retry_after_ms) == (Status.RESOURCE_EXHAUSTED, 250)
    ((event, request),) = world.observer.refused
    assert (event.outcome, event.drop_reason, request.request_id) == (Outcome.SHED, "hopeless", "late")
    world.step()
    with pytest.raises(RefusedError) as later:
        world.submit([7], 4)
    assert (refused.value.num_steps, later.value.num_steps) == (0, len(world.observer.steps)) == (0, 1)
    world.run()
    assert [world.tokens(request) for request in kept] == [fake.reference([n], "depth:2", 4) for n in range(2)]
    again = world.submit([7], 4, request_id="late")  # its id is free, and so are the places
    world.run()
    assert world.end(again).outcome is Outcome.MET
