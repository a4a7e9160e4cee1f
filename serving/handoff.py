"""From the engine's thread to the event loop, with one wake-up per engine step rather than one per token.

Tokens of a step are kept until the step is committed and then cross to the loop together; the end of a request crosses
at once, together with its last tokens. So a reader always sees the last token and the end as one piece. It is counted
when it is handed over, before the reader wakes: whoever has an answer finds it in the metrics, as it was delivered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stepwell.serving.courier import Arrivals, Courier
from stepwell.serving.engine.events import FinishEvent, Output, ResultEvent, TokenEvent

Event = Output | FinishEvent
Delivered = Callable[[FinishEvent], FinishEvent]
"""Told, on the event loop, that the end of a request is being handed over; says what that is by now."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Consecutive output of one request: what came since the previous chunk."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] | None
    """One for each token, if asked for."""
    finish: FinishEvent | None
    """Set on the last chunk only."""
    result: ResultEvent | None = None
    """The answer to a request that is not a generation."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> Chunk:
        """Merge events of one request, in order."""
        tokens = [event for event in events if isinstance(event, TokenEvent)]
        finish = next((event for event in events if isinstance(event, FinishEvent)), None)
        result = next((event for event in events if isinstance(event, ResultEvent)), None)
        logprobs = None
        if any(token.logprobs is not None for token in tokens):
            logprobs = tuple(value for token in tokens for value in token.logprobs or ())
        ids = tuple(token_id for token in tokens for token_id in token.token_ids)
        return cls(ids, "".join(token.text for token in tokens), logprobs, finish, result)


class Mailbox:
    """The events of one request: written on the engine thread, read by one coroutine."""

    def __init__(self, hub: Hub, *, whole: bool) -> None:
        """``whole``: deliver everything at the end, in one piece."""
        self._hub = hub
        self._whole = whole
        self._pending: list[Event] = []  # engine thread only
        self._ready: list[Event] = []  # event loop only
        self._waiter: asyncio.Future[None] | None = None
        self.delivered: Delivered | None = None
        """Set before the end crosses."""

    def sink(self, event: Event) -> None:
        """Engine thread: take an event; never blocks."""
        self._pending.append(event)
        if isinstance(event, FinishEvent):
            self._hub.ended(self)
        elif not self._whole:
            self._hub.wrote(self)

    def take(self) -> list[Event]:
        """Engine thread: what has not crossed yet."""
        events, self._pending = self._pending, []
        return events

    def deliver(self, events: list[Event]) -> None:
        """Event loop: hand over and wake the reader."""
        if isinstance(events[-1], FinishEvent):
            events[-1] = self._as_delivered(events[-1])
        self._ready += events
        if self._ready and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _as_delivered(self, end: FinishEvent) -> FinishEvent:
        """Whatever is wrong with the counting, the reader gets its answer."""
        try:
            return self.delivered(end) if self.delivered else end
        except Exception:
            _log.exception("request %s: its end was not counted", end.request_id)
            return end

    async def next(self) -> Chunk:
        """Wait for output; everything that has arrived comes as one chunk, so a slow reader gets longer chunks."""
        if not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        events, self._ready = self._ready, []
        return Chunk.of(events)


class Hub:
    """Carries the events of one engine to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, arrivals: Arrivals | None = None) -> None:
        """``arrivals``: calls of the event loop, which go before."""
        self._loop = loop
        self._courier: Courier[Event] = Courier(loop, arrivals or Arrivals())
        self._written: dict[Mailbox, None] = {}  # engine thread only; an ordered set
        self._ended: list[Mailbox] = []  # engine thread only

    def wrote(self, mailbox: Mailbox) -> None:
        """Engine thread: it has new tokens, which cross with the step."""
        self._written[mailbox] = None

    def ended(self, mailbox: Mailbox) -> None:
        """Engine thread: its request is over."""
        self._written.pop(mailbox, None)
        self._ended.append(mailbox)

    def step_committed(self) -> None:
        """Engine thread: everything of the step has been written to the mailboxes."""
        if self._written:
            mailboxes, self._written = list(self._written), {}
            self._cross(mailboxes)

    def request_over(self, end: FinishEvent, delivered: Delivered) -> None:
        """Engine thread: a request has ended. ``delivered`` is called once."""
        mailboxes, self._ended = self._ended, []
        if not mailboxes:  # its reader has gone
            delivered(end)
        for mailbox in mailboxes:
            mailbox.delivered = delivered
        self._cross(mailboxes)

    def _cross(self, mailboxes: list[Mailbox]) -> None:
        deliveries = [(mailbox, mailbox.take()) for mailbox in mailboxes]
        try:
            self._loop.call_soon_threadsafe(self._courier.bring, deliveries)
        except RuntimeError:  # the loop is closed: nobody reads any more, but it counts
            for mailbox, events in deliveries:
                mailbox.deliver(events)
