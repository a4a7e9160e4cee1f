"""When waiting or going on is pointless. Shared by all policies and by the engine, which sleeps until then."""

from __future__ import annotations

from collections.abc import Sequence

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


def drop_expired(
    now: float, waiting: Sequence[Request], running: Sequence[Request]
) -> tuple[list[Drop], Sequence[Request], Sequence[Request]]:
    """Drops of what is expired, and who is left waiting and running."""
    suspects = [r for r in waiting if r.start_by_s <= now]  # all that may have expired: hard deadlines are in it too
    suspects += [r for r in running if r.hard_deadline_s <= now]
    drops = [Drop(r, why) for r in suspects if (why := drop_reason(r, now))]
    if drops:
        dropped = {drop.request for drop in drops}
        waiting = [r for r in waiting if r not in dropped]
        running = [r for r in running if r not in dropped]
    return drops, waiting, running
