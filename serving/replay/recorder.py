"""Watching a simulated engine from outside: one result for each arrival, from what its client would see."""

from __future__ import annotations

from collections.abc import Callable

from stepwell.schedulers.request import Request
from stepwell.serving.engine.events import FinishEvent, Output
from stepwell.serving.engine.observer import StepObservation
from stepwell.serving.replay.outcomes import LatenessMeter, RequestResult


class Recorder:
    """The observer of the engines of a simulation, and the maker of their sinks. Request ids are arrival numbers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._meters: dict[str, LatenessMeter] = {}
        self.requests: dict[str, Request] = {}
        """Submitted and not over, by id."""
        self.results: list[RequestResult] = []
        """Of those that are over, in order of their ends."""
        self.num_steps = 0
        self.busy_s = 0.0
        """Time of all steps."""
        self.on_end: Callable[[RequestResult], None] | None = None
        """Called with each result."""

    def sink(self, request: Request) -> Callable[[Output | FinishEvent], None]:
        """Where the engine is to send the request's events. Its submission counts from here on."""
        self.requests[request.request_id] = request
        meter = self._meters[request.request_id] = LatenessMeter(request.slo)
        clock, arrival_s = self._clock, request.arrival_s

        def receive(event: Output | FinishEvent) -> None:
            if not isinstance(event, FinishEvent):
                meter.token(clock() - arrival_s)

        return receive

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        """It is over, whatever became of it."""
        del self.requests[request.request_id]
        meter = self._meters.pop(request.request_id)
        total_s = self._clock() - request.arrival_s
        report = event.report
        kept = report.tokens_kept
        result = RequestResult(
            arrival=int(request.request_id),
            at_s=request.arrival_s,
            slo_class=request.slo.slo_class,
            outcome=event.outcome.value,
            quality=report.quality,
            total_s=total_s,
            ttft_s=None if report.ttft_ms is None or kept is not None else report.ttft_ms / 1e3,
            tpot_s=None if report.tpot_ms is None else report.tpot_ms / 1e3,
            generated_tokens=report.generated_tokens,
            lateness_ratio=meter.finished(total_s) if event.error is None else None,
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
