"""The engine's thread: steps while there is work, sleeps while there is none, survives whatever a step throws."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time

from stepwell.serving.engine.engine import Engine

_log = logging.getLogger(__name__)


class EngineLoop:
    """Runs one engine in a thread of its own. The engine must use a real clock in seconds.

    Args:
        engine: nobody else may step it.
        name: of the thread.
        nice: added to its nice value, and so to that of the threads that it makes torch start. Ignored where threads
            have none of their own.
    """

    def __init__(self, engine: Engine, name: str = "engine", nice: int = 0) -> None:
        self._engine, self._nice = engine, nice
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._stop_at_s = math.inf  # time.monotonic(); finite once stopping

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread. Once only."""
        self._thread.start()

    def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give those taken in ``drain_s`` seconds to finish, end the rest (UNAVAILABLE), and wait
        for the thread. Without a thread everything ends at once."""
        self._stop_at_s = time.monotonic() + drain_s
        self._engine.drain()
        if self.alive:
            self._thread.join()
        else:
            self._engine.abandon()

    @property
    def _done(self) -> bool:
        return self._stop_at_s < math.inf and not self._engine.has_work

    def _main(self) -> None:
        if self._nice and sys.platform == "linux":
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + self._nice)
        while not self._done:
            if not self._turn() and not self._done:
                self._engine.wait(self._idle_s())

    def _turn(self) -> bool:
        """One step; False if the engine had nothing to do."""
        try:
            if time.monotonic() < self._stop_at_s:
                return self._engine.step()
            self._engine.abandon()
        except Exception:
            _log.exception("unexpected error in the engine; the requests it was working on are failed")
            self._engine.fail_in_flight()
        return True

    def _idle_s(self) -> float | None:
        """How long to sleep at most; None = until something happens."""
        expiry_s = self._engine.next_expiry_s - self._engine.now()
        idle_s = max(0.0, min(expiry_s, self._stop_at_s - time.monotonic()))
        return idle_s if idle_s < math.inf else None
