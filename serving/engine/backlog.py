"""How long the queue is, in seconds."""

from __future__ import annotations

_NEW_SHARE = 0.1  # weight of the newest request in the running mean


class Backlog:
    """Mean engine time per finished request, recent ones weighing more. Engine thread only."""

    def __init__(self) -> None:
        self._seconds_per_request: float | None = None
        self._busy_s = 0.0

    def worked(self, seconds: float) -> None:
        """The engine was busy with a step."""
        self._busy_s += seconds

    def finished(self) -> None:
        """One request got all of its output."""
        last = self._busy_s if self._seconds_per_request is None else self._seconds_per_request
        self._seconds_per_request = last + _NEW_SHARE * (self._busy_s - last)
        self._busy_s = 0.0

    def seconds(self, num_waiting: int) -> float:
        """Engine time to work off ``num_waiting`` requests like the recent ones; 0 before any finished."""
        return num_waiting * (self._seconds_per_request or 0.0)
