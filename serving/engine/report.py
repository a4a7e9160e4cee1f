"""What a request was served, from its stopwatch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from stepwell.schedulers.request import OperatingPoint, Phase
from stepwell.serving.engine.entry import Entry
from stepwell.serving.engine.events import Report


def build_report(entry: Entry, finished: bool, now: float) -> Report:
    """The report of a request that ends at ``now``; ``finished``: it got all of its output."""
    request, point, best_point = entry.request, entry.request.point, entry.best_point
    waited_s = now - entry.waiting_since_s if request.phase is Phase.WAITING else 0.0
    decoded = request.generated_tokens - 1
    served = entry.tokens_at or ({point: 1} if point else {})
    return Report(
        operating_point=point.name if point else "",
        quality=_mean_quality(served),
        slo_ms=_ms(request.slo.deadline_s),
        predicted_ms=None if entry.predicted_s is None else entry.predicted_s * 1e3,
        queue_ms=(entry.queue_s + waited_s) * 1e3,
        compute_ms=entry.compute_s * 1e3,
        total_ms=(now - request.arrival_s) * 1e3,
        slo_met=finished and now <= request.deadline_s and entry.worst_lateness_s <= 0.0,
        degraded=any(point != best_point for point in served),
        ttft_ms=_ms(request.first_token_s - request.arrival_s),
        tpot_ms=_ms((entry.last_token_s - request.first_token_s) / decoded) if decoded > 0 else None,
        prompt_tokens=request.prompt_tokens,
        generated_tokens=request.generated_tokens,
        cached_tokens=entry.cached_tokens,
        tokens_per_level={point.name: count for point, count in entry.tokens_at.items()},
        worst_lateness_ms=_ms(entry.worst_lateness_s),
        preemptions=request.preemptions,
        tokens_kept=entry.kept_tokens,
    )


def _mean_quality(tokens_at: Mapping[OperatingPoint, int]) -> float:
    """Mean over the tokens; 0 without any."""
    total = sum(tokens_at.values())
    return sum([point.quality * count for point, count in tokens_at.items()]) / total if total else 0.0


def _ms(seconds: float) -> float | None:
    return seconds * 1e3 if math.isfinite(seconds) else None
