"""Who waits and who runs."""

from __future__ import annotations

import math
from operator import attrgetter

from stepwell.schedulers.expiry import expires_s
from stepwell.schedulers.request import OperatingPoint, Request
from stepwell.serving.engine.entry import Entry
from stepwell.serving.engine.pages import PageKeeper

_request_of = attrgetter("request")


class _Listed:
    """The requests of a group, as a list that is made anew only after somebody came or left."""

    def __init__(self) -> None:
        self._num_changes = 0
        self._made: tuple[int, list[Request]] = 0, []

    def changed(self) -> None:
        """The group has changed; to be called right after, so that no other thread's list can be taken for the newer
        one."""
        self._num_changes += 1

    def of(self, group: dict[str, Entry]) -> list[Request]:
        num_changes, (made_at, requests) = self._num_changes, self._made
        if made_at != num_changes:
            requests = list(map(_request_of, list(group.values())))
            self._made = num_changes, requests
        return requests


class Roster:
    """All requests that are not over, in two groups: waiting ones (in order of arrival) and those that hold pages.

    Only the engine thread changes it; the counts and lists may be read from any. Nobody changes the lists.
    """

    def __init__(self, keeper: PageKeeper) -> None:
        self._keeper = keeper
        self._waiting: dict[str, Entry] = {}
        self._running: dict[str, Entry] = {}
        self._waiting_list, self._running_list = _Listed(), _Listed()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> list[Request]:
        """In order of arrival."""
        return self._waiting_list.of(self._waiting)

    @property
    def running(self) -> list[Request]:
        return self._running_list.of(self._running)

    @property
    def members(self) -> list[Entry]:
        """Everyone."""
        return [*self._running.values(), *self._waiting.values()]

    @property
    def holders(self) -> list[Entry]:
        """Those that hold pages."""
        return list(self._running.values())

    def find(self, request_id: str) -> Entry | None:
        """None if it is over."""
        return self._running.get(request_id) or self._waiting.get(request_id)

    def get_running(self, request_id: str) -> Entry:
        """One that holds pages."""
        return self._running[request_id]

    def get(self, request_id: str) -> Entry:
        """One that must not be over."""
        return self._running.get(request_id) or self._waiting[request_id]

    def add(self, entry: Entry) -> None:
        """A newcomer waits."""
        self._waiting[entry.request_id] = entry
        self._waiting_list.changed()

    def start(self, entry: Entry, point: OperatingPoint, now: float) -> bool:
        """WAITING -> RUNNING with pages for all its known tokens; False, and nothing changed, if there are too few."""
        pages = self._keeper.admit(entry, point)
        if pages is None:
            return False
        entry.start(point, pages, now)
        self._running[entry.request_id] = self._waiting.pop(entry.request_id)
        self._both_changed()
        return True

    def put_back(self, entry: Entry, now: float) -> None:
        """RUNNING -> WAITING: its pages are free again, its place in the queue is that of its arrival."""
        self._keeper.release(entry)
        entry.put_back(now)
        self._waiting[entry.request_id] = self._running.pop(entry.request_id)
        self._waiting = dict(sorted(self._waiting.items(), key=lambda item: item[1].request.arrival_s))
        self._both_changed()

    def remove(self, entry: Entry) -> None:
        """It is over; its pages are free again."""
        if self._running.pop(entry.request_id, None) is not None:
            self._running_list.changed()
        if self._waiting.pop(entry.request_id, None) is not None:
            self._waiting_list.changed()
        entry.drop_exits()
        self._keeper.release(entry)

    def _both_changed(self) -> None:
        self._waiting_list.changed()
        self._running_list.changed()

    def next_expiry_s(self) -> float:
        """Absolute time at which the next of them is to be dropped; ``inf`` if none ever is."""
        return min((expires_s(entry.request) for entry in self.members), default=math.inf)

    def check_integrity(self) -> None:
        """Raise AssertionError if pages are held by a request that does not run, or not held by one that does."""
        assert all(entry.pages is not None for entry in self._running.values()), "running without pages"
        assert all(entry.pages is None for entry in self._waiting.values()), "waiting with pages"
        self._keeper.check_integrity(anybody_runs=bool(self._running))
