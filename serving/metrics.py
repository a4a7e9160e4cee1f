"""Prometheus metrics of the server: what was asked for, what was served, and whether the objectives were met.

One :class:`Metrics` a server, on its own registry. Each model's engine reports through :meth:`Metrics.observer`;
gauges are read from the engines at scrape time. All durations are in seconds; buckets start at 1 ms and contain every
configured SLO threshold, so that the share of requests within a threshold is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from stepwell.schedulers.correction import KINDS
from stepwell.schedulers.request import Request
from stepwell.serving.config import SLOClass
from stepwell.serving.engine.events import FinishEvent, Outcome
from stepwell.serving.engine.observer import StepObservation

OTHER = "other"
MAX_LABEL_VALUES = 256

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
_GAUGES = (  # attribute of GaugeSource, name, help
    ("num_waiting", "requests_waiting", "Requests waiting."),
    ("num_running", "requests_running", "Requests holding cache pages."),
    ("cache_usage_ratio", "kv_cache_usage_ratio", "Cache pages in use, 0 to 1."),
    ("backlog_s", "backlog_seconds", "Time the waiting requests will take, judged by those that finished lately."),
    ("call_toll_s", "call_toll_seconds", "What a call that comes takes from the step that runs."),
)
_PREDICTION_GAUGES = (  # method of GaugeSource, name, help
    ("prediction_error", "step_prediction_error_ratio", "Median of |actual / predicted - 1| of recent steps."),
    (
        "prediction_coverage",
        "step_prediction_coverage_ratio",
        "Share of recent steps within their predicted 90th percentile.",
    ),
    ("prediction_slowness", "step_slowness_ratio", "Actual over profiled duration: median of recent steps."),
)
_QUALITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0)


class LabelFold:
    """Caps the number of values of a label: the first ``limit`` are kept, later ones become ``other``."""

    def __init__(self, limit: int = MAX_LABEL_VALUES, known: Iterable[str] = ()) -> None:
        self._limit = limit
        self._values = set(known)

    def __call__(self, value: str) -> str:
        if value not in self._values:
            if len(self._values) >= self._limit:
                return OTHER
            self._values.add(value)
        return value


class GaugeSource(Protocol):
    """What the gauges of one model read; an :class:`~stepwell.serving.engine.host.EngineHost` is one."""

    @property
    def num_waiting(self) -> int: ...

    @property
    def num_running(self) -> int: ...

    @property
    def cache_usage_ratio(self) -> float: ...

    @property
    def backlog_s(self) -> float: ...

    @property
    def call_toll_s(self) -> float: ...

    def prediction_error(self, kind: str) -> float: ...

    def prediction_coverage(self, kind: str) -> float: ...

    def prediction_slowness(self, kind: str) -> float: ...


def buckets_with(thresholds_ms: Iterable[float | None]) -> tuple[float, ...]:
    """Latency buckets in seconds, from 1 ms, containing every threshold."""
    extra = {ms / 1000.0 for ms in thresholds_ms if ms is not None and ms >= 1.0}
    return tuple(sorted({*_SECONDS, *extra}))


class Metrics:
    """All metrics of one server. Safe to call from any thread."""

    def __init__(
        self, registry: CollectorRegistry | None = None, slo_classes: Mapping[str, SLOClass] | None = None
    ) -> None:
        self.registry = registry or CollectorRegistry()
        classes = dict(slo_classes or {})
        self._fold_class = LabelFold(known=classes)
        self._fold_point = LabelFold()
        self._fold_reason = LabelFold(limit=32)
        thresholds = [ms for c in classes.values() for ms in (c.deadline_ms, c.ttft_ms, c.tpot_ms)]
        self._create_counters()
        self._create_histograms(buckets_with(thresholds))
        self._gauges = {
            attribute: Gauge(f"stepwell_{name}", text, ("model",), registry=self.registry)
            for attribute, name, text in _GAUGES
        }
        self._prediction_gauges = {
            method: Gauge(f"stepwell_{name}", text, ("model", "kind"), registry=self.registry)
            for method, name, text in _PREDICTION_GAUGES
        }

    def _create_counters(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"stepwell_{name}", text, ("model", *labels), registry=self.registry)

        self.requests = counter("slo_requests_total", "Requests by how they ended.", "slo_class", "outcome")
        self.served = counter("served_total", "Requests served, by operating point.", "operating_point")
        self.shed = counter("shed_total", "Requests refused or dropped, by reason.", "reason")
        self.tokens = counter("tokens_total", "Tokens by kind.", "kind")

    def _create_histograms(self, seconds: tuple[float, ...]) -> None:
        def histogram(name: str, text: str, label: str, buckets: tuple[float, ...] = seconds) -> Histogram:
            return Histogram(f"stepwell_{name}", text, ("model", label), buckets=buckets, registry=self.registry)

        self.request_seconds = histogram("request_seconds", "Arrival to last token.", "slo_class")
        self.queue_seconds = histogram("queue_seconds", "Time spent waiting.", "slo_class")
        self.ttft_seconds = histogram("time_to_first_token_seconds", "Arrival to first token.", "slo_class")
        self.tpot_seconds = histogram("time_per_output_token_seconds", "Mean after the first token.", "slo_class")
        self.delivery_seconds = histogram("delivery_seconds", "Last token to its reader's transport.", "slo_class")
        self.inter_token_seconds = histogram("inter_token_seconds", "Between two tokens.", "slo_class")
        self.slo_ratio = histogram("slo_ratio", "Latency over the latency asked for.", "slo_class", _RATIOS)
        self.quality = histogram("served_quality", "Quality relative to the full model.", "slo_class", _QUALITIES)
        self.step_seconds = histogram("step_seconds", "Duration of an engine step.", "kind")
        self.step_ratio = histogram("step_prediction_ratio", "Actual over predicted duration.", "kind", _RATIOS)

    def observer(self, model: str) -> ModelObserver:
        """The observer to give to ``model``'s engine."""
        return ModelObserver(self, model)

    def watch(self, model: str, source: GaugeSource) -> None:
        """Read ``model``'s gauges from ``source`` at every scrape."""
        for name, gauge in self._gauges.items():
            gauge.labels(model).set_function(partial(getattr, source, name))
        for method, gauge in self._prediction_gauges.items():
            for kind in KINDS:
                gauge.labels(model, kind).set_function(partial(getattr(source, method), kind))

    def unwatch(self, model: str) -> None:
        """``model`` is no longer loaded: its gauges disappear, its counters stay."""
        for gauge in self._gauges.values():
            gauge.remove(model)
        for gauge in self._prediction_gauges.values():
            for kind in KINDS:
                gauge.remove(model, kind)

    def refused(self, model: str, slo_class: str, reason: str) -> None:
        """A request was turned away before it reached the engine (draining, for example)."""
        self.requests.labels(model, self._fold_class(slo_class), Outcome.SHED.value).inc()
        self.shed.labels(model, self._fold_reason(reason)).inc()

    def padding_avoided(self, model: str, num_tokens: int) -> None:
        """So many tokens of padding came and will not be computed."""
        if num_tokens:
            self.tokens.labels(model, "padding_avoided").inc(num_tokens)

    def finished(self, model: str, event: FinishEvent, request: Request) -> None:
        """Count one request that reached the engine."""
        slo_class, report = self._fold_class(request.slo.slo_class), event.report
        self.requests.labels(model, slo_class, event.outcome.value).inc()
        if event.drop_reason is not None:
            self.shed.labels(model, self._fold_reason(event.drop_reason)).inc()
        if event.error is not None:
            return
        self.served.labels(model, self._fold_point(report.operating_point)).inc()
        self.quality.labels(model, slo_class).observe(report.quality)
        self.request_seconds.labels(model, slo_class).observe(report.total_ms / 1000.0)
        self.queue_seconds.labels(model, slo_class).observe(report.queue_ms / 1000.0)
        if report.ttft_ms is not None:
            self.ttft_seconds.labels(model, slo_class).observe(report.ttft_ms / 1000.0)
        if report.tpot_ms is not None:
            self.tpot_seconds.labels(model, slo_class).observe(report.tpot_ms / 1000.0)
        if report.tokens_kept is not None and (reduced := report.prompt_tokens - report.tokens_kept) > 0:
            self.tokens.labels(model, "reduced").inc(reduced)
        if (ratio := latency_ratio(event, request)) is not None:
            self.slo_ratio.labels(model, slo_class).observe(ratio)

    def delivered(self, model: str, seconds: float, request: Request) -> None:
        """An answer went out, so long after its engine had it; NaN if there was none."""
        if not math.isnan(seconds):
            self.delivery_seconds.labels(model, self._fold_class(request.slo.slo_class)).observe(max(seconds, 0.0))

    def step(self, model: str, step: StepObservation) -> None:
        """Count one step of ``model``'s engine."""
        self.step_seconds.labels(model, step.kind).observe(step.seconds)
        if step.predicted_s:
            self.step_ratio.labels(model, step.kind).observe(step.seconds / step.predicted_s)
        for kind, count in (
            ("prompt", step.prefill_tokens),
            ("generated", step.generated_tokens),
            ("cached", step.cached_tokens),
        ):
            if count:
                self.tokens.labels(model, kind).inc(count)
        for slo_class, seconds in step.inter_token_s:
            self.inter_token_seconds.labels(model, self._fold_class(slo_class)).observe(seconds)


class ModelObserver:
    """Adapts :class:`Metrics` to the observer interface of one model's engine."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        self._metrics.finished(self._model, event, request)

    def delivered(self, seconds: float, request: Request) -> None:
        """See :meth:`Metrics.delivered`."""
        self._metrics.delivered(self._model, seconds, request)

    def step_finished(self, step: StepObservation) -> None:
        self._metrics.step(self._model, step)


def latency_ratio(event: FinishEvent, request: Request) -> float | None:
    """The largest of latency / objective over the objectives the request stated; None if it stated none."""
    report, slo = event.report, request.slo
    pairs = ((report.total_ms, slo.deadline_s), (report.ttft_ms, slo.ttft_s), (report.tpot_ms, slo.tpot_s))
    ratios = [ms / 1000.0 / goal for ms, goal in pairs if ms is not None and goal < math.inf]
    return max(ratios, default=None)
