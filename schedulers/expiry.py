"""When waiting or going on is pointless. Shared by all policies and by the engine, which sleeps until then."""

from __future__ import annotations

from stepwell.schedulers.plan import DropReason
from stepwell.schedulers.request import Request


def expires_s(request: Request) -> float:
    """Absolute time from which on ``request`` is to be dropped.

    The hard deadline always counts: nobody waits any longer. The asked latency and the queue deadline count only
    before the first step: what has started is finished late rather than wasted (and reported as missed).
    """
    if request.has_started:
        return request.hard_deadline_s
    return min(request.deadline_s, request.queue_deadline_s)


def drop_reason(request: Request, now: float) -> DropReason | None:
    """Why ``request`` is to be dropped at time ``now``, or None."""
    if now < expires_s(request):
        return None
    return DropReason.EXPIRED if request.has_started or now >= request.deadline_s else DropReason.QUEUE_TIMEOUT
