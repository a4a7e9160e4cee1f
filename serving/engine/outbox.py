"""Everything the engine says to the outside: tokens, ends, measurements. Nothing out there can break the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stepwell.schedulers.request import Phase
from stepwell.serving.engine import endings
from stepwell.serving.engine.backlog import Backlog
from stepwell.serving.engine.endings import Ending
from stepwell.serving.engine.events import FinishEvent, Outcome, TokenEvent
from stepwell.serving.engine.generation import Generation
from stepwell.serving.engine.inbox import Inbox
from stepwell.serving.engine.observer import EngineObserver, StepObservation
from stepwell.serving.engine.report import build_report
from stepwell.serving.engine.roster import Roster

_log = logging.getLogger(__name__)


class Outbox:
    """Sends events to sinks and observer, on the engine thread."""

    def __init__(self, roster: Roster, inbox: Inbox, backlog: Backlog, observer: EngineObserver | None) -> None:
        self._roster, self._inbox, self._backlog, self._observer = roster, inbox, backlog, observer

    def stream(self, generation: Generation, event: TokenEvent, now: float) -> bool:
        """Send new output. If the client is gone, the request ends as cancelled and the answer is False."""
        self._send(generation, event)
        if generation.client_gone:
            self.finish(generation, endings.cancelled(), now)
        return not generation.client_gone

    def finish(self, generation: Generation, ending: Ending, now: float) -> None:
        """End a request: free its pages, tell its client and the observer. Exactly once a request."""
        event = _finish_event(generation, ending, now)
        generation.request.phase = Phase.DONE
        try:
            self._roster.remove(generation)
        finally:  # whatever is wrong with the cache, the client gets its answer
            self._inbox.forget(generation.request_id)
            self._send(generation, event)
            if ending.outcome is None:
                self._backlog.finished()
            self._observe(lambda observer: observer.request_finished(event, generation.request))

    def refuse(self, generation: Generation, ending: Ending, now: float) -> None:
        """Count a request that was not let in; its client is told by the caller. From any thread."""
        event = _finish_event(generation, ending, now)
        generation.request.phase = Phase.DONE
        self._observe(lambda observer: observer.request_refused(event, generation.request))

    def step_finished(self, step: StepObservation) -> None:
        """A step was run and committed."""
        self._observe(lambda observer: observer.step_finished(step))

    def _send(self, generation: Generation, event: TokenEvent | FinishEvent) -> None:
        if generation.client_gone:
            return
        try:
            generation.sink(event)
        except Exception:
            _log.warning("request %s: its client is gone", generation.request_id, exc_info=True)
            generation.client_gone = True

    def _observe(self, tell: Callable[[EngineObserver], None]) -> None:
        if self._observer is None:
            return
        try:
            tell(self._observer)
        except Exception:
            _log.exception("observer failed")


def _finish_event(generation: Generation, ending: Ending, now: float) -> FinishEvent:
    report = build_report(generation, ending.outcome is None, now)
    outcome = ending.outcome or (Outcome.MET if report.slo_met else Outcome.MISSED)
    return FinishEvent(generation.request_id, outcome, ending.finish_reason, ending.error, report, ending.drop_reason)
