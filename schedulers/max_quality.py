"""Everyone at the best operating point it allows, in order of deadline. The base line for policies that trade quality.

Earliest deadline first (Liu and Layland, 1973) over continuous batching (Orca, OSDI '22) with chunked prefill
(Sarathi-Serve, 2403.02310): sequences that decode advance in every step, what is left of the step's tokens goes to
prompts. A waiting request never takes pages from a running one; it starts when its whole prompt fits.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import TypeAlias

from stepwell.schedulers.base import Policy
from stepwell.schedulers.expiry import drop_reason
from stepwell.schedulers.plan import Capacity, CostModel, Drop, Limits, Slice, StepPlan
from stepwell.schedulers.request import OperatingPoint, Phase, Request

DEFAULT_PRIORITY = 2
"""Priority class of requests that name none (0)."""
PATIENCE_S = 30.0
"""A request without any deadline counts as due this long after arrival, times its priority class: so a class that
waits ages past more urgent ones, and nothing starves."""

Urgency: TypeAlias = tuple[float, int, float]
Candidate: TypeAlias = tuple[Urgency, Request]
Ranked: TypeAlias = tuple[Urgency, Slice]


def urgency(request: Request) -> Urgency:
    """Sort key, most urgent first: next due time, priority class, arrival."""
    priority = request.slo.priority or DEFAULT_PRIORITY
    due_s = request.next_due_s
    if due_s == math.inf:
        due_s = request.arrival_s + priority * PATIENCE_S
    return due_s, priority, request.arrival_s


class MaxQuality(Policy):
    """See the module."""

    name = "max_quality"

    def plan(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        capacity: Capacity,
        cost_model: CostModel | None,
    ) -> StepPlan:
        drops = [Drop(r, why) for group in (running, waiting) for r in group if (why := drop_reason(r, now))]
        if drops:
            dropped = {drop.request for drop in drops}
            waiting = [r for r in waiting if r not in dropped]
            running = [r for r in running if r not in dropped]
        ranked = self._choose(waiting, running, Room(capacity, running, self.limits))
        slices = [slice_ for _, slice_ in sorted(ranked, key=itemgetter(0))]
        return StepPlan(slices, drops, cost_model.predict_s(slices) if cost_model else None)

    def _choose(self, waiting: Sequence[Request], running: Sequence[Request], room: Room) -> list[Ranked]:
        """What runs: decodes first, then prompts while tokens and pages last."""
        decoding = _in_order([r for r in running if r.pending_tokens == 1])
        prompts = _in_order([r for r in running if r.pending_tokens > 1])
        tokens = self.limits.max_step_tokens
        chosen: list[Ranked] = []
        for key, request in chain(decoding, _admitting(prompts, _in_order(waiting), room)):
            num_tokens = min(request.pending_tokens, tokens)
            if num_tokens == 0:
                break
            if request.phase is Phase.RUNNING or room.admit(request):
                tokens -= num_tokens
                chosen.append((key, Slice(request, num_tokens, point_of(request))))
        return chosen


def point_of(request: Request) -> OperatingPoint:
    """Where it runs: where it started, else the best point it allows."""
    return request.point or request.points[-1]


class Room:
    """Counts down seats and pages while requests are admitted to one step.

    Beside the pages of its known tokens, an admission leaves one block for every running sequence to grow into:
    otherwise the next step would put back what this one admitted.
    """

    def __init__(self, capacity: Capacity, running: Sequence[Request], limits: Limits) -> None:
        self._capacity = capacity
        self._block = capacity.page_tokens
        self._pages = capacity.free_pages - sum(capacity.pages_for(point_of(r), self._block) for r in running)
        self._alone = not running
        self.seats = max(0, limits.max_running - len(running))
        """How many more may be admitted."""

    def admit(self, request: Request) -> bool:
        """Count ``request`` in if it fits. Needs a seat; once one request does not fit, no seat is left: nobody
        overtakes it."""
        point = point_of(request)
        needed = self._capacity.pages_for(point, request.known_tokens) + self._capacity.pages_for(point, self._block)
        if needed > self._pages and not self._alone:
            self.seats = 0
            return False
        self.seats -= 1
        self._pages -= needed
        self._alone = False
        return True


def _in_order(requests: Sequence[Request]) -> Iterator[Candidate]:
    """Most urgent first, lazily: a long queue costs one heap, not a sort."""
    heap = [(urgency(request), i) for i, request in enumerate(requests)]
    heapq.heapify(heap)
    while heap:
        key, i = heapq.heappop(heap)
        yield key, requests[i]


def _admitting(prompts: Iterator[Candidate], waiting: Iterator[Candidate], room: Room) -> Iterator[Candidate]:
    """Merge the two in order of urgency; nobody else is taken from ``waiting`` once the room has no seat."""
    newcomer = next(waiting, None) if room.seats else None
    for candidate in prompts:
        while newcomer and newcomer[0] < candidate[0]:
            yield newcomer
            newcomer = next(waiting, None) if room.seats else None
        yield candidate
    while newcomer:
        yield newcomer
        newcomer = next(waiting, None) if room.seats else None
