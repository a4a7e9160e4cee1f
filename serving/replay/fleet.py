"""Several engines in one virtual time: each in a thread of its own, exactly one of which runs at any moment.

An engine's step is one call that lasts from its plan to its commit, so engines whose steps overlap in time need a stack
each. The threads pass a baton: the main thread keeps the clock and wakes a replica when its time has come; the replica
runs until it lets time pass and hands the baton back. Nothing is left to the operating system's scheduler, so the same
simulation gives the same result.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from stepwell.serving.replay.virtual import VirtualClock


class _StoppedError(BaseException):
    """Unwinds the stack of a replica that is not needed any more."""


class ReplicaThread:
    """One replica's stack. All methods but :meth:`sleep_until` and :meth:`idle_until` are for the main thread.

    Args:
        clock: shared by all.
        main: what the thread does, start to end.
    """

    def __init__(self, clock: VirtualClock, main: Callable[[ReplicaThread], None]) -> None:
        self._clock, self._main = clock, main
        self._go, self._back = threading.Lock(), threading.Lock()
        for baton in (self._go, self._back):
            baton.acquire()
        self._num_sleeps = 0
        self._idle = False
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="replica", daemon=True)

    def start(self) -> None:
        """Run it until it first lets time pass."""
        self._thread.start()
        self._wait_for_it()

    def wake(self) -> None:
        """Something was submitted: if it is idle, it looks."""
        if self._idle:
            self._idle = False
            self._clock.at(self._clock.now_s, self._resume_from(self._num_sleeps))

    def stop(self) -> None:
        """End it, wherever it sleeps."""
        if self._thread.is_alive():
            self._stopped = True
            self._go.release()
            self._thread.join()

    def sleep_until(self, when_s: float) -> None:
        """Let time pass, whatever happens meanwhile."""
        self._num_sleeps += 1
        if when_s < math.inf:
            self._clock.at(when_s, self._resume_from(self._num_sleeps))
        self._back.release()
        self._go.acquire()
        if self._stopped:
            raise _StoppedError

    def idle_until(self, when_s: float) -> bool:
        """Let time pass until something is submitted or ``when_s``. Always true: :meth:`stop` ends it."""
        self._idle = True
        self.sleep_until(when_s)
        self._idle = False
        return True

    def _resume_from(self, sleep: int) -> Callable[[], None]:
        """Wakes the thread from the sleep of that number; does nothing if it is awake since."""

        def resume() -> None:
            if self._num_sleeps == sleep and self._thread.is_alive():
                self._num_sleeps += 1
                self._go.release()
                self._wait_for_it()

        return resume

    def _wait_for_it(self) -> None:
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._main(self)
        except _StoppedError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._back.release()
