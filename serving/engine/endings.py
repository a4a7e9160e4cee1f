"""The ways a request can end, each with its outcome, its reason and what the client is told."""

from __future__ import annotations

import math
from typing import NamedTuple

from stepwell.schedulers.plan import Drop, DropReason
from stepwell.schedulers.request import Request
from stepwell.serving.engine.events import FinishReason, Outcome
from stepwell.serving.errors import RequestError, Status


class Ending(NamedTuple):
    """``outcome`` None: finished; whether its SLO was met decides between MET and MISSED."""

    outcome: Outcome | None
    finish_reason: FinishReason
    error: RequestError | None = None
    drop_reason: str | None = None


def finished(reason: FinishReason) -> Ending:
    """All of its output is there."""
    return Ending(None, reason)


def cancelled() -> Ending:
    """By the client, or because it went away."""
    error = RequestError(Status.CANCELLED, "request: cancelled by the client, or it went away")
    return Ending(Outcome.CANCELLED, "cancelled", error)


def left(request: Request, now: float) -> Ending:
    """Its call is over before it is: expired if that is because the call's own deadline has passed (gRPC ends such
    calls without us), else cancelled."""
    expired = now >= request.hard_deadline_s
    return dropped(Drop(request, DropReason.EXPIRED), now) if expired else cancelled()


def failed() -> Ending:
    """Our fault; the cause goes to the log, not to the client."""
    message = "request: failed while it was computed; the cause is in the server's log; retry"
    return Ending(Outcome.FAILED, "error", RequestError(Status.INTERNAL, message))


def shut_down() -> Ending:
    """The server stopped before it was finished."""
    message = "request: the server stopped before it was finished; retry elsewhere"
    return Ending(Outcome.EXPIRED, "expired", RequestError(Status.UNAVAILABLE, message), "shutdown")


def queue_full(max_waiting: int, retry_after_s: float) -> Ending:
    """Refused at once: as many wait as may."""
    message = f"request: {max_waiting} requests wait already, no more may; retry in {retry_after_s:.1f} s"
    return Ending(Outcome.SHED, "shed", _retry(message, retry_after_s), "queue_full")


def dropped(drop: Drop, now: float) -> Ending:
    """As the policy decided. Shed work may be worth a later try if the policy says when; expired work is not."""
    why, waited_ms = drop.reason.value, (now - drop.request.arrival_s) * 1e3
    if drop.reason is DropReason.HOPELESS:
        message = "slo: cannot be met even at the smallest allowed operating point; allow more time or less quality"
        if drop.retry_after_s is None:
            return Ending(Outcome.SHED, "shed", RequestError(Status.DEADLINE_EXCEEDED, message), why)
        return Ending(Outcome.SHED, "shed", _retry(message, drop.retry_after_s), why)
    message = f"{_passed(drop)} after {waited_ms:.0f} ms; allow more time, or retry when the load is lower"
    return Ending(Outcome.EXPIRED, "expired", RequestError(Status.DEADLINE_EXCEEDED, message), why)


def _passed(drop: Drop) -> str:
    request: Request = drop.request
    if drop.reason is DropReason.QUEUE_TIMEOUT:
        return "timeout: the request did not start within it and was dropped"
    if request.has_started:
        return "deadline: passed while the request was computed; it was ended"
    asked = f" of {request.slo.deadline_s * 1e3:.0f} ms" if request.slo.deadline_s < math.inf else ""
    return f"deadline:{asked} passed while the request was waiting; it was dropped"


def _retry(message: str, retry_after_s: float) -> RequestError:
    return RequestError(Status.RESOURCE_EXHAUSTED, message, retry_after_ms=max(1, math.ceil(retry_after_s * 1e3)))
