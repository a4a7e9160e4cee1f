"""Where other threads leave work for the engine thread."""

from __future__ import annotations

import threading

from stepwell.schedulers.admission import Admission
from stepwell.schedulers.plan import Drop
from stepwell.serving.engine.entry import Entry
from stepwell.serving.errors import RequestError, Status, invalid


class Inbox:
    """Submissions and cancellations in order of arrival. All methods are thread-safe and quick, except ``wait``."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._arrived: list[Entry] = []
        self._cancelled: list[str] = []
        self._known: set[str] = set()
        self._admission: Admission | None = None
        self._closed = False
        self._woken = False

    def submit(self, entry: Entry, now: float) -> Drop | None:
        """Take it, or say why it is refused. Raises RequestError: UNAVAILABLE once closed, INVALID_ARGUMENT if a
        request of the same id is not over."""
        with self._lock:
            if self._closed:
                raise RequestError(Status.UNAVAILABLE, "server: stopping, takes no new requests; retry elsewhere")
            if entry.request_id in self._known:
                raise invalid("id", "is in use by a running request", entry.request_id, "send a unique one")
            if self._admission is not None and (drop := self._admission.admit(now, entry.request)):
                return drop
            self._known.add(entry.request_id)
            self._arrived.append(entry)
            self._wake()
            return None

    def admit_by(self, admission: Admission | None) -> None:
        """What decides on submissions from now on; None takes all. It has not yet counted what is still in here."""
        with self._lock:
            self._admission = admission
            if admission is not None:
                for entry in self._arrived:
                    admission.count(entry.request)

    def cancel(self, request_id: str) -> None:
        """Unknown and finished ids are ignored."""
        with self._lock:
            if request_id in self._known:
                self._cancelled.append(request_id)
                self._wake()

    def forget(self, request_id: str) -> None:
        """The request is over; its id may be used again."""
        with self._lock:
            self._known.discard(request_id)

    def take(self) -> tuple[list[Entry], list[str]]:
        """What was submitted and what was cancelled since the last call."""
        with self._lock:
            taken = self._arrived, self._cancelled
            self._arrived, self._cancelled = [], []
            self._woken = False
            return taken

    def close(self) -> None:
        """Refuse submissions from now on, and wake the engine."""
        with self._lock:
            self._closed = True
            self._wake()

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until something has come in since the last ``take``, or ``timeout_s`` has passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._woken, timeout_s)

    @property
    def num_known(self) -> int:
        """Requests that were submitted and are not over."""
        return len(self._known)

    def _wake(self) -> None:
        self._woken = True
        self._changed.notify_all()
