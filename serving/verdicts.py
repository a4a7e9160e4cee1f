"""Refusals that hold for others: what an engine has just refused, it need not be asked again a moment later.

A refusal says by how much time the work due exceeds the time there is. Until the engine's next step has ended, what is
due only grows. So whoever asks for the same, for no less output to no shorter a prompt, and is due so little later that
most of that time is still missing, would be refused too, and is without being priced, packed and sent there. The
engine's own words are repeated. And while the engine is being asked, others that wish the same wait for what it says:
asking once for each of a burst would take the time that the engine needs to answer the first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from stepwell.serving.call import GenerateCall
from stepwell.serving.errors import RefusedError
from stepwell.serving.parameters import FREE_KEYS
from stepwell.serving.slo import METADATA_PREFIX, SLO_METADATA

HOLD_S = 0.05
"""The longest that a refusal holds, however long a step takes."""
CERTAIN = 0.5
"""Of the time that was missing, how much later another may be due: demand is checked at instants, which shift, and the
calls that are expected to come meanwhile may get fewer."""
WAIT_S = 0.01
"""The longest that a call waits for the answer to another before it asks itself: more than an engine takes to answer
(under 1 ms, unless the machine is full), and little beside what clients ask for."""
_MOST = 256
_MOST_ALIKE = 8
"""Verdicts on calls that wish the same: of different sizes, or due at different times."""


class Asked(NamedTuple):
    """A call as far as admission looks at it. Times are on the server's clock."""

    wishes: Hashable
    """Equal for calls that differ in the other fields only. See :func:`wishes_of`; a protocol may have its own."""
    prompt_tokens: int
    max_tokens: int
    arrival_s: float
    hard_deadline_s: float


class _Verdict(NamedTuple):
    asked: Asked
    slo_class: str
    error: RefusedError
    at_s: float


class _Alike:
    """Of calls that wish the same."""

    def __init__(self) -> None:
        self.verdicts: list[_Verdict] = []
        self.most_tokens = 0
        """Prompt and output of the largest: it fits the cache."""


class _Question:
    """What an engine is being asked, and who waits for its answer."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def wait(self) -> asyncio.Future[None]:
        """One of its own for each, so that one who leaves leaves alone."""
        self._waiting.append(future := asyncio.get_running_loop().create_future())
        return future

    def end(self) -> None:
        """It was answered, or takes too long."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def wishes_of(call: GenerateCall) -> Hashable:
    """All that a call asks for beside its size and the time that is left, unless it makes no difference to when it can
    be served. What is unknown or nonsense is part of it, so it is never equal to what has passed the checks."""
    parameters = frozenset((key, type(value), value) for key, value in call.parameters.items() if key not in FREE_KEYS)
    return call.lossless, bool(call.stop), parameters, slo_metadata(call.metadata)


def slo_metadata(metadata: Mapping[str, str]) -> Hashable:
    """What of a call's metadata states what it asks for."""
    return frozenset(
        [(k, value) for k, value in metadata.items() if k in SLO_METADATA or k.startswith(METADATA_PREFIX)]
    )


class Verdicts:
    """Of one engine. All but ``begin``, ``step_ended`` and ``forget`` is for the event loop."""

    def __init__(self) -> None:
        self._held: dict[Hashable, _Alike] = {}
        self._asking: dict[Hashable, _Question] = {}
        self._num_steps = 0
        """That the engine has ended since it was loaded. What it said reckoning with fewer is not to be learnt."""

    def __contains__(self, wishes: Hashable) -> bool:
        return wishes in self._held

    @property
    def any(self) -> bool:
        """Whether there are refusals that may hold."""
        return bool(self._held)

    def begin(self) -> None:
        """An engine is new. From any thread."""
        self._num_steps = 0
        self.forget()

    def step_ended(self) -> None:
        """The engine may admit now what it refused. From any thread."""
        self._num_steps += 1
        self.forget()

    def forget(self) -> None:
        """All that was refused. From any thread."""
        self._held = {}

    def learn(self, asked: Asked, slo_class: str, error: RefusedError, now: float) -> None:
        """The engine has refused a call of that class. Ignored if it has ended a step since."""
        held = self._held
        if error.num_steps != self._num_steps:
            return
        if len(held) >= _MOST:
            held.clear()
        alike = held.setdefault(asked.wishes, _Alike())
        alike.most_tokens = max(alike.most_tokens, asked.prompt_tokens + asked.max_tokens)
        alike.verdicts = [_Verdict(asked, slo_class, error, now), *alike.verdicts[: _MOST_ALIKE - 1]]

    async def settled(self, wishes: Hashable) -> None:
        """Wait until a question of such ``wishes`` is answered, if there is one, but no longer than ``WAIT_S``."""
        if (question := self._asking.get(wishes)) is not None:
            await question.wait()

    @contextmanager
    def asking(self, wishes: Hashable) -> Iterator[None]:
        """While the engine is asked; what it says is to be learnt within."""
        if wishes in self._asking:  # it has waited already
            try:
                yield
            finally:  # any answer will do for those who wait
                if (other := self._asking.get(wishes)) is not None:
                    other.end()
            return
        self._asking[wishes] = question = _Question()
        timer = asyncio.get_running_loop().call_later(WAIT_S, self._end, wishes, question)
        try:
            yield
        finally:
            timer.cancel()
            self._end(wishes, question)

    def _end(self, wishes: Hashable, question: _Question) -> None:
        if self._asking.get(wishes) is question:
            del self._asking[wishes]
        question.end()

    def on(self, asked: Asked, now: float) -> tuple[RefusedError, str] | None:
        """What the engine would say to a call, if that is sure, and the call's class; else None."""
        alike = self._held.get(asked.wishes)
        if alike is None or asked.prompt_tokens + asked.max_tokens > alike.most_tokens:
            return None
        verdict = next((v for v in alike.verdicts if now <= v.at_s + HOLD_S and _is_as_hard(asked, v, now)), None)
        if verdict is None:
            return None
        error, retry_after_ms = verdict.error, verdict.error.retry_after_ms
        if retry_after_ms is not None:
            retry_after_ms = max(1, math.ceil(retry_after_ms - (now - verdict.at_s) * 1e3))
        repeated = RefusedError(error.code, error.message, retry_after_ms, error.reason, error.missing_s)
        return repeated, verdict.slo_class


def _is_as_hard(asked: Asked, verdict: _Verdict, now: float) -> bool:
    refused, error = verdict.asked, verdict.error
    if asked.prompt_tokens < refused.prompt_tokens or asked.max_tokens < refused.max_tokens:
        return False
    later_s = asked.arrival_s - refused.arrival_s
    if asked.hard_deadline_s != refused.hard_deadline_s:  # without one they are infinite
        later_s = max(later_s, asked.hard_deadline_s - refused.hard_deadline_s)
    if error.retry_after_ms is None:  # too late even alone, as of when that was said: time has gone on
        later_s -= now - verdict.at_s
    return later_s <= error.missing_s * CERTAIN
