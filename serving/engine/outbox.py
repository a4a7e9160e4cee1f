"""Everything the engine says to the outside: tokens, ends, measurements. Nothing out there can break the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stepwell.schedulers.request import Phase
from stepwell.serving.engine import endings
from stepwell.serving.engine.backlog import Backlog
from stepwell.serving.engine.endings import Ending
from stepwell.serving.engine.entry import Entry
from stepwell.serving.engine.events import FinishEvent, Outcome, Output
from stepwell.serving.engine.inbox import Inbox
from stepwell.serving.engine.observer import EngineObserver, StepObservation
from stepwell.serving.engine.report import build_report
from stepwell.serving.engine.roster import Roster

_log = logging.getLogger(__name__)


class Outbox:
    """Sends events to sinks and observer, on the engine thread."""

    def __init__(self, roster: Roster, inbox: Inbox, backlog: Backlog, observer: EngineObserver | None) -> None:
        self._roster, self._inbox, self._backlog, self._observer = roster, inbox, backlog, observer
        self.num_steps = 0
        """Steps that the observer was told of."""

    def stream(self, entry: Entry, event: Output, now: float) -> bool:
        """Send new output. If the client is gone, the request ends as cancelled and the answer is False."""
        self._send(entry, event)
        if entry.client_gone:
            self.finish(entry, endings.cancelled(), now)
        return not entry.client_gone

    def finish(self, entry: Entry, ending: Ending, now: float) -> None:
        """End a request: free its pages, tell its client and the observer. Exactly once a request."""
        event = _finish_event(entry, ending, now)
        entry.request.phase = Phase.DONE
        try:
            self._roster.remove(entry)
        finally:  # whatever is wrong with the cache, the client gets its answer
            self._inbox.forget(entry.request_id)
            self._send(entry, event)
            if ending.outcome is None:
                self._backlog.finished()
            self._observe(lambda observer: observer.request_finished(event, entry.request))

    def refuse(self, entry: Entry, ending: Ending, now: float) -> None:
        """Count a request that was not let in; its client is told by the caller. From any thread."""
        event = _finish_event(entry, ending, now)
        entry.request.phase = Phase.DONE
        self._observe(lambda observer: observer.request_refused(event, entry.request))

    def step_finished(self, step: StepObservation) -> None:
        """A step was run and committed."""
        self.num_steps += 1
        self._observe(lambda observer: observer.step_finished(step))

    def _send(self, entry: Entry, event: Output | FinishEvent) -> None:
        if entry.client_gone:
            return
        try:
            entry.sink(event)
        except Exception:
            _log.warning("request %s: its client is gone", entry.request_id, exc_info=True)
            entry.client_gone = True

    def _observe(self, tell: Callable[[EngineObserver], None]) -> None:
        if self._observer is None:
            return
        try:
            tell(self._observer)
        except Exception:
            _log.exception("observer failed")


def _finish_event(entry: Entry, ending: Ending, now: float) -> FinishEvent:
    report = build_report(entry, ending.outcome is None, now)
    outcome = ending.outcome or (Outcome.MET if report.slo_met else Outcome.MISSED)
    return FinishEvent(entry.request_id, outcome, ending.finish_reason, ending.error, report, ending.drop_reason)
