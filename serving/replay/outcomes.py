"""What became of the requests of a replay, simulated or real, and its summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stepwell.schedulers.request import SLO

OUTCOMES = ("met", "missed", "shed", "expired", "cancelled", "failed")
"""How a request can end, as in the metrics."""
SERVED = ("met", "missed")
"""Those that got all of their output."""
REFUSED = ("shed", "expired")
"""Those the server gave up on."""


@dataclass(frozen=True)
class RequestResult:
    """What became of one request. Durations in seconds since its arrival; None where it did not get that far."""

    arrival: int
    """Its number in the workload."""
    at_s: float
    """When it was due to arrive, since the workload's start. All its latencies count from then."""
    slo_class: str
    outcome: str
    """One of :data:`OUTCOMES`."""
    quality: float
    """At which it was served, relative to the full model; 0 if it never was."""
    total_s: float
    """To its end, whatever that was."""
    ttft_s: float | None = None
    """To its first token; None if it is answered as a whole."""
    tpot_s: float | None = None
    """Mean time per output token after the first; None before two."""
    generated_tokens: int = 0
    lateness_ratio: float | None = None
    """Largest (latency / latency asked) over its tokens and its end (:class:`LatenessMeter`); None if none was asked,
    or it was not served."""
    operating_point: str = ""
    """Where it was served last."""
    kept_ratio: float | None = None
    """Share of its tokens that token reduction left, averaged over the layers; None for a generation, and where nobody
    says."""

    @property
    def served(self) -> bool:
        return self.outcome in SERVED


class LatenessMeter:
    """Takes the times of a request's tokens and compares them with what its SLO asked for.

    Token k is due ``ttft_s + k * tpot_s`` after arrival (from the first token on if no ``ttft_s`` was asked), so time
    won on one token may be spent on the next; the last is due at ``deadline_s``.
    """

    __slots__ = ("_asks", "_due_s", "_origin_s", "_slo", "_tpot_s", "worst")

    def __init__(self, slo: SLO) -> None:
        self._slo, self._tpot_s = slo, slo.tpot_s
        self._due_s = slo.ttft_s
        self._origin_s = 0.0
        self._asks = False
        self.worst = 0.0
        """Largest ratio so far; above 1 is a miss."""

    def token(self, at_s: float) -> None:
        """The next token came ``at_s`` seconds after arrival."""
        if self._due_s < math.inf:
            self._asks = True
            ratio = (at_s - self._origin_s) / self._due_s
            if ratio > self.worst:
                self.worst = ratio
        elif not self._asks and self._tpot_s < math.inf:  # the first token, due any time, starts the count
            self._asks, self._origin_s, self._due_s = True, at_s, 0.0
        self._due_s += self._tpot_s

    def finished(self, at_s: float) -> float | None:
        """All tokens came, the last ``at_s`` seconds after arrival; returns the worst ratio, None if nothing was
        asked."""
        if self._slo.deadline_s < math.inf:
            self._asks = True
            self.worst = max(self.worst, at_s / self._slo.deadline_s)
        return self.worst if self._asks else None


@dataclass(frozen=True)
class Summary:
    """A replay in numbers; times in seconds, None where no request gives one."""

    num_sent: int
    duration_s: float
    """From the first arrival to the end of the last request."""
    outcomes: Mapping[str, int]
    """Requests by outcome; adds up to ``num_sent``."""
    attainment: float
    """Share of the requests sent that met their SLO."""
    mean_quality: float | None
    """Over the requests served."""
    goodput: float
    """Requests a second that met their SLO, each weighted by the quality it was served at."""
    latency_p50_s: float | None
    latency_p99_s: float | None
    """Arrival to last token, over the requests served."""
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    worst_lateness_ratio: float | None
    """Largest (latency / latency asked) of a request served."""
    mean_kept_ratio: float | None = None
    """Tokens that token reduction left, over the requests served: see :attr:`RequestResult.kept_ratio`."""
    per_class: Mapping[str, Summary] = field(default_factory=dict)
    """The same for each SLO class; empty inside of one."""

    @classmethod
    def of(cls, results: Sequence[RequestResult], duration_s: float) -> Summary:
        """Summarise a replay of ``duration_s``. Raises ValueError if nothing was sent."""
        if not results:
            raise ValueError("results: none; a summary needs at least one request")
        by_class: dict[str, list[RequestResult]] = {}
        for result in results:
            by_class.setdefault(result.slo_class, []).append(result)
        per_class = {name: _summary(some, duration_s, {}) for name, some in sorted(by_class.items())}
        return _summary(results, duration_s, per_class)

    @property
    def refusals(self) -> int:
        """Requests shed or expired."""
        return sum(self.outcomes[outcome] for outcome in REFUSED)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        document = {**asdict(self), "refusals": self.refusals}
        document["per_class"] = {name: summary.to_dict() for name, summary in self.per_class.items()}
        return document


def _summary(results: Sequence[RequestResult], duration_s: float, per_class: Mapping[str, Summary]) -> Summary:
    counts = Counter(result.outcome for result in results)
    met = [result for result in results if result.outcome == "met"]
    served = [result for result in results if result.served]
    totals = [result.total_s for result in served]
    ttfts = [result.ttft_s for result in served if result.ttft_s is not None]
    kept = [result.kept_ratio for result in served if result.kept_ratio is not None]
    ratios = [result.lateness_ratio for result in served if result.lateness_ratio is not None]
    return Summary(
        num_sent=len(results),
        duration_s=duration_s,
        outcomes={outcome: counts[outcome] for outcome in OUTCOMES},
        attainment=len(met) / len(results),
        mean_quality=sum(result.quality for result in served) / len(served) if served else None,
        goodput=sum(result.quality for result in met) / duration_s if duration_s > 0 else 0.0,
        latency_p50_s=percentile(totals, 0.5),
        latency_p99_s=percentile(totals, 0.99),
        ttft_p50_s=percentile(ttfts, 0.5),
        ttft_p99_s=percentile(ttfts, 0.99),
        worst_lateness_ratio=max(ratios, default=None),
        mean_kept_ratio=sum(kept) / len(kept) if kept else None,
        per_class=per_class,
    )


def percentile(values: Sequence[float], quantile: float) -> float | None:
    """The smallest value that at least this share of the values does not exceed; None without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)] if ordered else None
