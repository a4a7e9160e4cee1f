"""Output of engines on its last way to its readers, on the event loop: behind calls that have just come.

Writing a token takes about as long as turning a call away, and a step brings a token for everybody at once. If all of
them were written in one turn of the event loop, every call that comes meanwhile would wait for all of them, at each of
the several turns that it takes to be read: so they are handed over a few a turn, and while calls come in, not before
they have waited a while themselves. What the engine adds to them meanwhile goes with them, in one piece.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")

AT_ONCE = 4
"""Readers that are woken in one turn of the event loop."""
QUIET_S = 0.002
"""Calls are coming in until none has come for this long."""
HOLD_S = 0.005
"""What has waited so long goes out even so; the planner learns how long answers wait."""
_PAUSE_S = 0.001


class Reader(Protocol[Item]):
    """Who gets items."""

    def deliver(self, items: list[Item], /) -> None: ...


class Arrivals:
    """When the last call came. Written and read on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = -1e9

    def came(self) -> None:
        """A request has come that nobody has looked at yet."""
        self._last_s = self._clock()

    def now(self) -> float:
        """Of their clock."""
        return self._clock()

    def coming(self, now: float) -> bool:
        """Whether there may be more of them right now."""
        return now < self._last_s + QUIET_S


class Courier(Generic[Item]):
    """Hands items to their readers, in the order in which these got their first."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, arrivals: Arrivals, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loop, self._arrivals, self._clock = loop, arrivals, clock
        self._held: dict[Reader[Item], tuple[float, list[Item]]] = {}
        """With the time since when."""
        self._is_due = False

    def bring(self, deliveries: Iterable[tuple[Reader[Item], list[Item]]]) -> None:
        """Take items over."""
        now = self._clock()
        for reader, items in deliveries:
            self._held.setdefault(reader, (now, []))[1].extend(items)
        if not self._is_due:
            self._turn()

    def _turn(self) -> None:
        now = self._clock()
        self._is_due = bool(self._held)
        if not self._held:
            return
        oldest_s, _ = next(iter(self._held.values()))
        if self._arrivals.coming(now) and now < oldest_s + HOLD_S:
            self._loop.call_later(_PAUSE_S, self._turn)
            return
        for reader in list(islice(self._held, AT_ONCE)):
            reader.deliver(self._held.pop(reader)[1])
        self._loop.call_soon(self._turn)
