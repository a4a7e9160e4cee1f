"""Watching a simulated engine from outside: one result for each arrival, from what its client would see."""

from __future__ import annotations

from collections.abc import Callable

from stepwell.schedulers.answer_way import AnswerWay
from stepwell.schedulers.request import Request
from stepwell.serving.engine.events import FinishEvent, Outcome, Output
from stepwell.serving.engine.observer import StepObservation
from stepwell.serving.replay.outcomes import LatenessMeter, RequestResult

ROUNDING = 1e-9
"""Share of what was asked by which the engine's clock and a client's may differ."""


class Recorder:
    """The observer of the engines of a simulation, and the maker of their sinks. Request ids are arrival numbers."""

    def __init__(self, clock: Callable[[], float], delivered: Callable[[], float]) -> None:
        """``clock``: the engines'; ``delivered``: when output that an engine hands over now reaches its client."""
        self._clock, self._delivered = clock, delivered
        self._meters: dict[str, LatenessMeter] = {}
        self._output_times: dict[str, tuple[float, float]] = {}
        """When the first output and the last so far reached their client."""
        self.requests: dict[str, Request] = {}
        """Submitted and not over, by id."""
        self.results: list[RequestResult] = []
        """Of those that are over, in order of their ends."""
        self.num_steps = 0
        self.busy_s = 0.0
        """Time of all steps."""
        self.on_end: Callable[[RequestResult], None] | None = None
        """Called with each result."""
        self.answer_ways: list[AnswerWay] = []
        """Told how long answers take from an engine to their client."""

    def sink(self, request: Request) -> Callable[[Output | FinishEvent], None]:
        """Where the engine is to send the request's events. Its submission counts from here on."""
        self.requests[request.request_id] = request
        meter = self._meters[request.request_id] = LatenessMeter(request.slo)
        delivered, times, arrival_s = self._delivered, self._output_times, request.arrival_s

        def receive(event: Output | FinishEvent) -> None:
            if isinstance(event, FinishEvent):
                return
            at_s = delivered()
            first_s, _ = times.get(event.request_id, (at_s, at_s))
            times[event.request_id] = first_s, at_s
            meter.token(at_s - arrival_s)

        return receive

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        """It is over, whatever became of it."""
        del self.requests[request.request_id]
        meter = self._meters.pop(request.request_id)
        times = self._output_times.pop(request.request_id, None)
        end_s = now = self._clock()
        if times and event.error is None:
            end_s = times[1]
            for answer_way in self.answer_ways:
                answer_way.observe([end_s - now])
        total_s, report = end_s - request.arrival_s, event.report
        ratio = meter.finished(total_s) if event.error is None else None
        is_late = event.outcome is Outcome.MET and ratio is not None and ratio > 1.0 + ROUNDING
        num_tokens, kept = report.generated_tokens, report.tokens_kept
        result = RequestResult(
            arrival=int(request.request_id),
            at_s=request.arrival_s,
            slo_class=request.slo.slo_class,
            outcome=(Outcome.MISSED if is_late else event.outcome).value,
            quality=report.quality,
            total_s=total_s,
            ttft_s=times[0] - request.arrival_s if times and kept is None else None,
            tpot_s=(times[1] - times[0]) / (num_tokens - 1) if times and num_tokens > 1 else None,
            generated_tokens=num_tokens,
            lateness_ratio=ratio,
            operating_point=report.operating_point,
            kept_ratio=None if kept is None else kept / report.prompt_tokens,
        )
        self.results.append(result)
        if self.on_end is not None:
            self.on_end(result)

    def request_refused(self, event: FinishEvent, request: Request) -> None:
        """Refused at submission; the engine raises the error besides."""
        self.request_finished(event, request)

    def step_finished(self, step: StepObservation) -> None:
        """A step was run and committed."""
        self.num_steps += 1
        self.busy_s += step.seconds
