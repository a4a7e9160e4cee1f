"""What a request was served, from its stopwatch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from stepwell.schedulers.request import OperatingPoint, Phase
from stepwell.serving.engine.events import Report
from stepwell.serving.engine.generation import Generation


def build_report(generation: Generation, finished: bool, now: float) -> Report:
    """The report of a request that ends at ``now``; ``finished``: it got all of its output."""
    request, point = generation.request, generation.request.point
    waited_s = now - generation.waiting_since_s if request.phase is Phase.WAITING else 0.0
    decoded = request.generated_tokens - 1
    served = generation.tokens_at or ({point: 1} if point else {})
    return Report(
        operating_point=point.name if point else "",
        quality=_mean_quality(served),
        slo_ms=_ms(request.slo.deadline_s),
        predicted_ms=None if generation.predicted_s is None else generation.predicted_s * 1e3,
        queue_ms=(generation.queue_s + waited_s) * 1e3,
        compute_ms=generation.compute_s * 1e3,
        total_ms=(now - request.arrival_s) * 1e3,
        slo_met=finished and now <= request.deadline_s and generation.worst_lateness_s <= 0.0,
        degraded=any(point != generation.best_point for point in served),
        ttft_ms=_ms(request.first_token_s - request.arrival_s),
        tpot_ms=_ms((generation.last_token_s - request.first_token_s) / decoded) if decoded > 0 else None,
        prompt_tokens=request.prompt_tokens,
        generated_tokens=request.generated_tokens,
        cached_tokens=generation.cached_tokens,
        tokens_per_level={point.name: count for point, count in generation.tokens_at.items()},
        worst_lateness_ms=_ms(generation.worst_lateness_s),
        preemptions=request.preemptions,
    )


def _mean_quality(tokens_at: Mapping[OperatingPoint, int]) -> float:
    """Mean over the tokens; 0 without any."""
    total = sum(tokens_at.values())
    return sum(point.quality * count for point, count in tokens_at.items()) / total if total else 0.0


def _ms(seconds: float) -> float | None:
    return seconds * 1e3 if math.isfinite(seconds) else None
