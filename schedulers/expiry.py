"""When waiting or going on is pointless. Shared by all policies and by the engine, which sleeps until then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

from stepwell.schedulers.plan import Drop, DropReason
from stepwell.schedulers.request import Request


def expires_s(request: Request) -> float:
    """Absolute time from which on ``request`` is to be dropped.

    The hard deadline always counts: nobody waits any longer. The asked latency and the queue deadline count only
    before the first step: what has started is finished late rather than wasted (and reported as missed).
    """
    return request.hard_deadline_s if request.has_started else request.start_by_s


def drop_reason(request: Request, now: float) -> DropReason | None:
    """Why ``request`` is to be dropped at time ``now``, or None."""
    if now < expires_s(request):
        return None
    return DropReason.EXPIRED if request.has_started or now >= request.deadline_s else DropReason.QUEUE_TIMEOUT


class Expiry:
    """Finds who has expired. Nobody has before the earliest of their times, which is worked out once for as long as the
    same requests wait, and run."""

    def __init__(self) -> None:
        self._start_by_s, self._hard_deadline_s = _Earliest("start_by_s"), _Earliest("hard_deadline_s")

    def drop(
        self, now: float, waiting: Sequence[Request], running: Sequence[Request]
    ) -> tuple[list[Drop], Sequence[Request], Sequence[Request]]:
        """Drops of what is expired, and who is left waiting and running."""
        if now < self._start_by_s.of(waiting) and now < self._hard_deadline_s.of(running):
            return [], waiting, running  # nobody who waits has a hard deadline before ``start_by_s``
        drops = [Drop(r, why) for r in (*waiting, *running) if (why := drop_reason(r, now))]
        if drops:
            dropped = {drop.request for drop in drops}
            waiting = [r for r in waiting if r not in dropped]
            running = [r for r in running if r not in dropped]
        return drops, waiting, running


class _Earliest:
    """The earliest of a time of requests that never changes."""

    def __init__(self, name: str) -> None:
        self._time_of = attrgetter(name)
        self._requests: Sequence[Request] = ()
        self._earliest_s = math.inf

    def of(self, requests: Sequence[Request]) -> float:
        if requests != self._requests:
            self._requests, self._earliest_s = list(requests), min(map(self._time_of, requests), default=math.inf)
        return self._earliest_s
