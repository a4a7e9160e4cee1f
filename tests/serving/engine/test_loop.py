"""The engine's thread, with a real clock. Waits are bounds against hanging, not expectations."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from stepwell.schedulers.base import Policy
from stepwell.schedulers.expiry import drop_reason
from stepwell.schedulers.plan import Drop, Limits, StepPlan
from stepwell.serving.engine.events import FinishEvent, Outcome
from stepwell.serving.engine.loop import EngineLoop
from stepwell.serving.errors import RequestError, Status

LONG_S = 30.0


class Client:
    """A sink that lets a test wait for the end."""

    def __init__(self) -> None:
        self.first_token, self.finished = threading.Event(), threading.Event()
        self.end: FinishEvent | None = None

    def __call__(self, event) -> None:
        self.first_token.set()
        if isinstance(event, FinishEvent):
            self.end = event
            self.finished.set()

    def outcome(self) -> Outcome:
        assert self.finished.wait(LONG_S)
        assert self.end is not None
        return self.end.outcome


@pytest.fixture
def started(make_world):
    """``started(**options)`` -> (world, loop) with the loop running; stopped when the test ends."""
    loops: list[EngineLoop] = []

    def start(**options):
        world = make_world(clock=time.monotonic, **options)
        loops.append(EngineLoop(world.engine))
        loops[-1].start()
        return world, loops[-1]

    yield start
    for loop in loops:
        loop.stop()
        assert not loop.alive


def count_turns(world, monkeypatch) -> list[bool]:
    """What each step of the engine returns, from now on."""
    turns: list[bool] = []
    step = world.engine.step
    monkeypatch.setattr(world.engine, "step", lambda: turns.append(step()) or turns[-1])
    return turns


def test_work_from_many_threads_is_done(started) -> None:
    world, _ = started()
    clients = [Client() for _ in range(20)]
    threads = [threading.Thread(target=world.submit, kwargs={"sink": client, "request_id": f"t{i}"})
               for i, client in enumerate(clients)]  # fmt: skip
    for thread in threads:
        thread.start()
    assert {client.outcome() for client in clients} == {Outcome.MET}
    for thread in threads:
        thread.join()


def test_an_idle_engine_sleeps_until_something_comes(started, monkeypatch) -> None:
    world, _ = started()
    turns = count_turns(world, monkeypatch)
    for _ in range(3):
        client = Client()
        world.submit(max_tokens=2, sink=client)
        client.outcome()
    assert len(turns) <= 3 * 4, "two steps a request, and one or two that find nothing to do"


class Never(Policy):
    """Lets everything wait until it expires."""

    name = "never"

    def plan(self, now, waiting, running, capacity, cost_model) -> StepPlan:
        return StepPlan(drops=[Drop(r, why) for r in waiting if (why := drop_reason(r, now))])


def test_a_waiting_request_is_answered_when_its_deadline_comes(started) -> None:
    world, _ = started(policy=Never(Limits()))
    client = Client()
    world.submit(sink=client, queue_s=0.02)
    assert client.outcome() is Outcome.EXPIRED


def test_cancelling_wakes_a_sleeping_engine(started) -> None:
    world, _ = started(policy=Never(Limits()))
    client = Client()
    request = world.submit(sink=client)
    time.sleep(0.02)  # let it fall asleep; if it has not, the test passes all the same
    world.engine.cancel(request)
    assert client.outcome() is Outcome.CANCELLED


def test_stopping_finishes_what_was_taken_in(started) -> None:
    world, loop = started(max_running=1)
    clients = [Client() for _ in range(3)]
    for client in clients:
        world.submit(max_tokens=20, sink=client)
    loop.stop(drain_s=LONG_S)
    assert {client.outcome() for client in clients} == {Outcome.MET}
    assert not loop.alive
    with pytest.raises(RequestError) as refused:
        world.submit()
    assert refused.value.code is Status.UNAVAILABLE


def test_stopping_ends_what_does_not_finish_in_time(started) -> None:
    world, loop = started(max_running=1, num_pages=100_000)
    running, waiting = Client(), Client()
    world.submit(max_tokens=30_000, ignore_eos=True, sink=running)
    assert running.first_token.wait(LONG_S)
    world.submit(sink=waiting)
    loop.stop(drain_s=0.01)
    assert [client.end.error.code for client in (running, waiting)] == [Status.UNAVAILABLE] * 2


def test_stopping_a_loop_that_never_started_answers_what_was_submitted(make_world) -> None:
    world = make_world()
    loop, client = EngineLoop(world.engine), Client()
    world.submit(sink=client)
    loop.stop(drain_s=LONG_S)
    assert not loop.alive
    assert client.outcome() is Outcome.EXPIRED


def test_the_loop_survives_an_unexpected_error(started, monkeypatch, caplog) -> None:
    world, loop = started()
    plan = world.engine._policy.plan
    errors = iter([ZeroDivisionError("a bug")])

    def buggy(*args):
        for error in errors:
            raise error
        return plan(*args)

    monkeypatch.setattr(world.engine._policy, "plan", buggy)
    victim, next_one = Client(), Client()
    world.submit(sink=victim)
    assert victim.outcome() is Outcome.FAILED
    assert "bug" not in victim.end.error.message
    world.submit(sink=next_one)
    assert next_one.outcome() is Outcome.MET
    assert loop.alive
    assert "ZeroDivisionError: a bug" in caplog.text


def test_cancelling_from_another_thread(started) -> None:
    world, _ = started(num_pages=100_000)
    client = Client()
    request = world.submit(max_tokens=30_000, ignore_eos=True, sink=client)
    assert client.first_token.wait(LONG_S)
    world.engine.cancel(request)
    assert client.outcome() is Outcome.CANCELLED


@pytest.mark.skipif(sys.platform != "linux", reason="threads have nice values of their own on Linux only")
@pytest.mark.parametrize("nice", [0, 3])
def test_its_thread_is_nicer_than_those_that_submit(make_world, nice: int) -> None:
    world, found, done = make_world(clock=time.monotonic), [], threading.Event()

    def sink(event) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        done.set()

    loop = EngineLoop(world.engine, nice=nice)
    loop.start()
    world.submit([1], 1, sink=sink)
    assert done.wait(LONG_S)
    loop.stop()
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert set(found) == {min(19, ours + nice)}
