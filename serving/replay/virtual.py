"""Virtual time: a clock that jumps from event to event, and a runner that takes as long as the cost model says.

With these two the server's own engine and policies are the simulator: there is no second scheduler.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from stepwell.models.sampling import SampledToken
from stepwell.schedulers.plan import Slice, as_slice
from stepwell.schedulers.request import Request
from stepwell.serving.engine.step import ItemResult, ItemStep, Step

_TOKEN = SampledToken(0)


class VirtualClock:
    """Seconds since the simulation began, and what is still to happen. Call it for the time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def __call__(self) -> float:
        return self.now_s

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Do ``action`` once the time is ``when_s``, in the order of these calls among equal times."""
        heapq.heappush(self._events, (when_s, next(self._numbers), action))

    @property
    def next_s(self) -> float:
        """When something happens next; ``inf`` if nothing ever does."""
        return self._events[0][0] if self._events else math.inf

    def advance_to(self, when_s: float) -> None:
        """Let time pass: everything due until ``when_s`` happens at its own time. Time never runs backwards."""
        events = self._events
        while events and events[0][0] <= when_s:
            due_s, _, action = heapq.heappop(events)
            self.now_s = max(self.now_s, due_s)
            action()
        self.now_s = max(self.now_s, when_s)


@dataclass(frozen=True)
class Fault:
    """What goes wrong in one call of the runner."""

    slowdown: float = 1.0
    """It takes so many times as long."""
    error: Exception | None = None
    """Raised when that time is over."""


FaultPlan: TypeAlias = Callable[[int, Sequence[Step]], Fault]
"""From the number of the call (from 0) and its sequences to what goes wrong; ``Fault()`` = nothing."""


class SimRunner:
    """Computes nothing, takes its time.

    Args:
        requests: those the engine may run, by id. Read while a step runs: its owner keeps it up to date.
        seconds: how long a step takes, from what runs in it.
        sleep_until: let the time pass until then; what arrives meanwhile is submitted meanwhile.
        clock: the engine's.
        taken_s: time that others have taken from the steps of this engine, up to now.
        noise: standard deviation of the logarithm of a duration's random factor, whose median is 1; 0 = none.
        seed: of the noise.
        faults: what goes wrong.
    """

    def __init__(
        self,
        requests: Mapping[str, Request],
        seconds: Callable[[Sequence[Slice]], float],
        *,
        clock: Callable[[], float],
        sleep_until: Callable[[float], None],
        taken_s: Callable[[], float] = lambda: 0.0,
        noise: float = 0.0,
        seed: int = 0,
        faults: FaultPlan | None = None,
    ) -> None:
        self._requests, self._seconds, self._clock, self._sleep_until = requests, seconds, clock, sleep_until
        self._taken_s = taken_s
        self._noise, self._rng, self._faults = noise, random.Random(seed), faults
        self.num_calls = 0

    def run(self, steps: Sequence[Step]) -> dict[str, Any]:
        """Let the predicted time pass. Tokens are all the same, and results are empty: one a request."""
        requests = self._requests
        slices = list(map(as_slice, [(requests[s.request_id], s.num_tokens, s.point) for s in steps]))
        duration_s = self._seconds(slices)
        if self._noise:
            duration_s *= self._rng.lognormvariate(0.0, self._noise)
        fault = self._faults(self.num_calls, steps) if self._faults else None
        self.num_calls += 1
        self._pass(duration_s * (fault.slowdown if fault else 1.0))
        if fault and fault.error is not None:
            raise fault.error
        if steps and isinstance(steps[0], ItemStep):  # then all are
            return {step.request_id: [_result(step)] for step in steps}
        return {step.request_id: _TOKEN for step in steps if step.yields}

    def _pass(self, seconds: float) -> None:
        """Let them pass, and what others take meanwhile."""
        end_s, taken_s = self._clock() + seconds, self._taken_s()
        self._sleep_until(end_s)
        while (by_now_s := self._taken_s()) > taken_s:
            end_s, taken_s = end_s + by_now_s - taken_s, by_now_s
            self._sleep_until(end_s)


def _result(step: Step) -> ItemResult:
    return ItemResult((), round(step.num_tokens * step.point.token_budget))
