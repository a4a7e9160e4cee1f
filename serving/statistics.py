"""Counters of one model since it was configured, for the protocol's ModelStatistics."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from stepwell.serving.engine.events import FinishEvent


@dataclass
class Duration:
    """How often, and for how long altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += max(0, round(seconds * 1e9))


@dataclass
class Statistics:
    """Written from the engine thread and the event loop, read from the event loop."""

    success: Duration = field(default_factory=Duration)
    """Whole requests that were served, arrival to end."""
    fail: Duration = field(default_factory=Duration)
    """Whole requests that were not, whatever the reason."""
    queue: Duration = field(default_factory=Duration)
    """Waiting, of served requests."""
    compute_input: Duration = field(default_factory=Duration)
    """Checking and tokenising, of every request."""
    compute_infer: Duration = field(default_factory=Duration)
    """Steps that served requests took part in."""
    execution_count: int = 0
    """Steps of the engine."""
    last_inference_ms: int = 0
    """End of the latest served request, milliseconds since the epoch; 0 = none."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def request_prepared(self, seconds: float) -> None:
        """A request was read and checked in this time."""
        with self._lock:
            self.compute_input.add(seconds)

    def request_refused(self, seconds: float) -> None:
        """A request was turned away before it reached the engine."""
        with self._lock:
            self.fail.add(seconds)

    def request_finished(self, event: FinishEvent) -> None:
        """A request left the engine."""
        report = event.report
        with self._lock:
            if event.error is not None:
                self.fail.add(report.total_ms / 1000.0)
                return
            self.success.add(report.total_ms / 1000.0)
            self.queue.add(report.queue_ms / 1000.0)
            self.compute_infer.add(report.compute_ms / 1000.0)
            self.last_inference_ms = time.time_ns() // 1_000_000

    def step_finished(self) -> None:
        """The engine ran a step."""
        with self._lock:
            self.execution_count += 1
