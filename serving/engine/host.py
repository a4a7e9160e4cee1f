"""Where an engine runs: in a thread of this process, or in a process of its own. The same to whoever uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from stepwell.serving.engine.events import Sink
from stepwell.serving.engine.job import Job

OnLost = Callable[[str], None]
"""Told, on the event loop, why an engine ended that nobody stopped; all of its requests have failed by then."""


class EngineHost(Protocol):
    """One engine, running. ``submit`` and ``cancel`` are for the event loop given to ``start``; ``start`` and ``stop``
    block and are not."""

    def start(self, loop: asyncio.AbstractEventLoop, on_lost: OnLost) -> None:
        """Run from now on. Once only."""

    def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests (UNAVAILABLE), give those admitted ``drain_s`` seconds, end the rest, free everything."""

    async def submit(self, job: Job, sink: Sink) -> None:
        """Hand a request over; ``sink`` receives its events, the last one a FinishEvent.

        Raises RequestError if it is not taken, of the kind RefusedError if the engine's observer has counted it; then
        the sink is never called. If cancelled, so is the request.
        """

    def cancel(self, request_id: str) -> None:
        """End a request at the next step. Unknown and finished ids are ignored."""

    def answer_took(self, seconds: float) -> None:
        """An answer was so long under way from the engine to its reader; on the event loop."""

    def turned_away(self) -> None:
        """A call was refused without asking the engine, which plans with the time that it took; on the event loop."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""

    @property
    def num_running(self) -> int:
        """Requests that hold cache pages."""

    @property
    def cache_usage_ratio(self) -> float:
        """Share of the cache pages that running requests hold, 0..1."""

    @property
    def backlog_s(self) -> float:
        """Seconds the waiting requests will take, judged by those that finished lately."""

    @property
    def call_toll_s(self) -> float:
        """Seconds that a call takes from the step that runs when it comes; 0 where the policy does not learn it."""

    def prediction_error(self, kind: str) -> float:
        """Median of |actual / predicted - 1| of recent steps of this kind; NaN before any."""

    def prediction_coverage(self, kind: str) -> float:
        """Share of recent steps of this kind within their predicted 90th percentile; NaN before any."""

    def prediction_slowness(self, kind: str) -> float:
        """Median of actual seconds over those of the cost profile, of recent steps of this kind; 1 before any."""
