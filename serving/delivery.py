"""The end of a request as of when its reader gets it, which is later than when the engine had it.

Between the two lie the way from the engine's process and the event loop, which reads calls and writes other answers. A
client does not care whose fault it is: what it asked for is judged, and counted, when its answer is handed over.
"""

from __future__ import annotations

import math
from dataclasses import replace

from stepwell.schedulers.request import Request
from stepwell.serving.engine.events import FinishEvent, Outcome, Report


def way_s(event: FinishEvent, request: Request, now: float) -> float:
    """How long its answer has been under way at ``now``, in seconds; NaN if there is none."""
    return math.nan if event.error is not None else now - request.arrival_s - event.report.total_ms / 1e3


def as_delivered(event: FinishEvent, request: Request, now: float) -> FinishEvent:
    """``event`` if its reader gets it at ``now``, with the last of the output. Without an answer it is as it was."""
    if event.error is not None:
        return event
    report, late_ms = event.report, (now - _last_due_s(request, event.report)) * 1e3
    worst_ms = report.worst_lateness_ms
    if late_ms > -math.inf:
        worst_ms = late_ms if worst_ms is None else max(worst_ms, late_ms)
    in_time = report.slo_met and now <= request.deadline_s and late_ms <= 0.0
    total_ms = (now - request.arrival_s) * 1e3
    delivered = replace(report, total_ms=total_ms, slo_met=in_time, worst_lateness_ms=worst_ms)
    return replace(event, outcome=Outcome.MET if in_time else Outcome.MISSED, report=delivered)


def _last_due_s(request: Request, report: Report) -> float:
    """When the last of the output is due: a token, or an answer that comes as a whole; ``inf`` if no such thing was
    asked. ``request`` knows nothing of its progress here."""
    index = report.generated_tokens - 1
    if index <= 0:
        return request.first_due_s
    if request.slo.tpot_s == math.inf or report.ttft_ms is None:
        return math.inf
    first_s = request.first_due_s if request.first_due_s < math.inf else request.arrival_s + report.ttft_ms / 1e3
    return first_s + index * request.slo.tpot_s
