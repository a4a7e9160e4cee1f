"""Whatever arrives, whatever goes wrong: nobody is lost, nobody is served anything but its own output."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.expiry import expires_s
from stepwell.serving.engine.events import Outcome
from stepwell.serving.errors import RequestError

EOS = frozenset(range(0, 10_007, 17))
NAMES = ("depth:0", "depth:1", "depth:2", "width:0", "width:1", "dropped:0", "dropped:1")

durations = st.one_of(st.just(math.inf), st.integers(1, 60).map(lambda ms: ms / 1000))
prompts = st.tuples(
    st.sampled_from([(), (1, 2, 3, 4, 5, 6), tuple(range(40, 52))]),  # shared prefixes
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
).map(lambda parts: [*parts[0], *parts[1]])
requests = st.fixed_dictionaries(
    {
        "prompt": prompts,
        "max_tokens": st.integers(1, 12),
        "points": st.one_of(st.sampled_from(NAMES).map(lambda name: (name,)), st.just(NAMES[:3]), st.just(NAMES[:2])),
        "ignore_eos": st.booleans(),
        "priority": st.integers(0, 3),
    },
    optional={
        "deadline_s": durations,
        "ttft_s": durations,
        "tpot_s": durations,
        "hard_s": durations,
        "queue_s": durations,
    },
)
actions = st.lists(
    st.one_of(
        requests,
        st.integers(1, 4),  # steps to take before the next action
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("lose"), st.integers(1, 3)),  # a client that goes away after so many events
    ),
    min_size=1,
    max_size=14,
)
worlds = st.fixed_dictionaries(
    {
        "num_pages": st.integers(24, 60),
        "page_tokens": st.sampled_from([1, 3, 4]),
        "max_step_tokens": st.integers(1, 24),
        "max_running": st.integers(1, 6),
        "max_waiting": st.integers(2, 12),
        "faults": st.sets(st.integers(0, 30), max_size=2),
    }
)


class LosesClient:
    """A sink that raises from its n-th event on."""

    def __init__(self, num_events: int) -> None:
        self.num_left = num_events

    def __call__(self, event: Any) -> None:
        self.num_left -= 1
        if self.num_left < 0:
            raise ConnectionError("gone")


def play(world, script) -> dict[str, dict]:
    """Carry out ``script``; returns what was asked for, by request id. Refused requests are left out."""
    asked: dict[str, dict] = {}
    for action in script:
        match action:
            case dict():
                with contextlib.suppress(RequestError):  # longer than the cache
                    asked[world.submit(**action)] = action
            case int():
                for _ in range(action):
                    world.step()
            case ("cancel", index):
                world.engine.cancel(f"r{index}")
            case ("lose", num_events):
                world.submit([7, 8], 5, points=("depth:1",), sink=LosesClient(num_events))
    world.run()
    return asked


@given(options=worlds, script=actions)
def test_every_request_ends_once_and_gets_its_own_output(fake, options, script) -> None:
    world = fake.World(eos=EOS, **options)
    asked = play(world, script)
    for request_id, wish in asked.items():
        end, tokens = world.end(request_id), world.tokens(request_id)
        point = end.report.operating_point or wish["points"][-1]
        eos = () if wish["ignore_eos"] else EOS
        expected = fake.reference(wish["prompt"], point, wish["max_tokens"], eos)
        assert point in wish["points"]
        assert tokens == expected[: len(tokens)]
        if end.error is None:
            assert tokens == expected
            assert end.finish_reason == ("stop" if tokens[-1] in eos else "length")
            assert end.outcome is (Outcome.MET if end.report.slo_met else Outcome.MISSED)
        else:
            assert end.outcome not in (Outcome.MET, Outcome.MISSED)
        assert end.report.generated_tokens == len(tokens)
    world.close()


@given(options=worlds, script=actions)
def test_expired_work_is_never_computed_and_limits_hold(fake, options, script) -> None:
    world = fake.World(eos=EOS, **options)
    play(world, script)
    of = {event.request_id: request for event, request in world.observer.finished}
    started: set[str] = set()
    for now, steps in world.runner.calls:
        assert len(steps) <= options["max_running"]
        assert sum(len(step.token_ids) for step in steps) <= options["max_step_tokens"]
        for step in steps:
            request = of[step.request_id]
            assert now < request.hard_deadline_s
            if step.request_id not in started:
                started.add(step.request_id)
                assert now < min(expires_s(request), request.deadline_s, request.queue_deadline_s)
    world.close()


@given(options=worlds, script=actions)
def test_the_observer_sees_all_work(fake, options, script) -> None:
    world = fake.World(eos=EOS, **options)
    play(world, script)
    calls = [steps for number, (_, steps) in enumerate(world.runner.calls) if number not in options["faults"]]
    seen = world.observer.steps
    assert all(step.seconds > 0 for step in seen)
    assert sum(len(step.points) for step in seen) == sum(map(len, calls))
    assert sum(step.generated_tokens for step in seen) == sum(s.sampling is not None for steps in calls for s in steps)
    if not options["faults"]:
        assert [len(step.points) for step in seen] == [len(steps) for steps in calls]
    reports = [event.report for event, _ in world.observer.finished]
    assert sum(r.generated_tokens for r in reports) == sum(s.generated_tokens for s in world.observer.steps)
    assert all(r.queue_ms + r.compute_ms <= r.total_ms + 1e-6 for r in reports)
    world.close()


@given(
    deadlines=st.lists(st.integers(1, 50), min_size=1, max_size=8, unique=True),
    prompt_tokens=st.integers(1, 10),
    max_step_tokens=st.integers(1, 8),
)
def test_one_at_a_time_they_finish_in_order_of_deadline(fake, deadlines, prompt_tokens, max_step_tokens) -> None:
    world = fake.World(max_running=1, max_step_tokens=max_step_tokens)
    ids = {world.submit(range(prompt_tokens), 3, deadline_s=1e3 + d): d for d in deadlines}
    world.run()
    assert [ids[event.request_id] for event, _ in world.observer.finished] == sorted(deadlines)
    world.close()
