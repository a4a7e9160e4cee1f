"""Continuous batching in order of due times: what all policies share that choose the operating points beforehand.

Earliest deadline first (Liu and Layland, 1973) over continuous batching (Orca, OSDI '22) with chunked prefill
(Sarathi-Serve, 2403.02310): sequences that decode advance in every step, what is left of the step's tokens goes to
prompts. A waiting request never takes pages from a running one; it starts when its whole prompt fits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from stepwell.schedulers.base import Policy
from stepwell.schedulers.expiry import Expiry
from stepwell.schedulers.plan import Capacity, CostModel, Limits, Slice, StepPlan, as_slice
from stepwell.schedulers.request import OperatingPoint, Phase, Request
from stepwell.schedulers.room import Room

by_urgency = attrgetter("urgency_s")
"""Sort key of running requests, and of all that may have generated tokens."""


class Line:
    """Those that wait in order of urgency, worked out once for as long as they are the same."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._line: list[Request] = []

    def of(self, waiting: Sequence[Request]) -> list[Request]:
        """Most urgent first; among equals, in order of arrival. Not to be changed."""
        if waiting != self._waiting:
            self._waiting, self._line = list(waiting), sorted(waiting, key=attrgetter("rank_s"))
        return self._line


class DeadlineOrder(Policy):
    """See the module. A subclass says where each request runs."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.expiry, self.line = Expiry(), Line()

    @abstractmethod
    def point_of(self, request: Request) -> OperatingPoint:
        """One of the points that ``request`` allows; the one it has, if it has one and may not switch."""

    def plan(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        capacity: Capacity,
        cost_model: CostModel | None,
    ) -> StepPlan:
        drops, waiting, running = self.expiry.drop(now, waiting, running)
        slices = self.batch(waiting, running, Room(capacity, running, self.limits))
        return StepPlan(slices, drops, *cost_model.foresee(slices)) if cost_model else StepPlan(slices, drops)

    def batch(self, waiting: Sequence[Request], running: Sequence[Request], room: Room) -> list[Slice]:
        """What runs: decodes first, then prompts while tokens and pages last."""
        urgencies = {r: r.urgency_s for r in running}
        in_order = sorted(running, key=urgencies.__getitem__)
        tokens = self.limits.max_step_tokens
        decoding = [r for r in in_order if r.known_tokens - r.computed_tokens == 1][:tokens]
        prompts = [r for r in in_order if r.known_tokens - r.computed_tokens > 1]
        slices = [as_slice((r, 1, self.point_of(r))) for r in decoding]
        tokens -= len(slices)
        for request in merged(prompts, self.line.of(waiting), room):
            if tokens == 0:
                break
            point, num_tokens = self.point_of(request), request.whole_units(min(request.pending_tokens, tokens))
            if not num_tokens:
                continue
            if request.phase is Phase.RUNNING or room.admit(request, point):
                tokens -= num_tokens
                slices.append(as_slice((request, num_tokens, point)))
                urgencies[request] = request.urgency_s
        if len(slices) > len(decoding):
            slices.sort(key=lambda slice_: urgencies[slice_.request])
        return slices


def merged(prompts: Iterable[Request], waiting: Iterable[Request], room: Room) -> Iterator[Request]:
    """Both in order of urgency; nobody else is taken from ``waiting`` once the room has no seat."""
    queue = iter(waiting)
    newcomer = next(queue, None) if room.seats else None
    for request in prompts:
        while newcomer is not None and newcomer.rank_s < request.urgency_s:
            yield newcomer
            newcomer = next(queue, None) if room.seats else None
        yield request
    while newcomer is not None:
        yield newcomer
        newcomer = next(queue, None) if room.seats else None
