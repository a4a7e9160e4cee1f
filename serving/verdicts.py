"""Refusals that hold for others: what an engine has just refused, it need not be asked again a moment later.

A refusal says by how much time the work due exceeds the time there is. Until the engine's next step has ended, what is
due only grows. So whoever asks for the same, for no less output to no shorter a prompt, and is due so little later that
most of that time is still missing, would be refused too, and is without being priced, packed and sent there. The
engine's own words are repeated.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from stepwell.serving.call import GenerateCall
from stepwell.serving.errors import RefusedError
from stepwell.serving.parameters import FREE_KEYS
from stepwell.serving.slo import METADATA_PREFIX, SLO_METADATA

HOLD_S = 0.05
"""The longest that a refusal holds, however long a step takes."""
CERTAIN = 0.5
"""Of the time that was missing, how much later another may be due: demand is checked at instants, which shift."""
_MOST = 256


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
    most_tokens: int
    """Prompt and output of the largest of its kind: it fits the cache."""


def wishes_of(call: GenerateCall) -> Hashable:
    """All that a call asks for beside its prompt and the time that is left, unless it makes no difference to when it
    can be served. What is unknown or nonsense is part of it, so it is never equal to what has passed the checks."""
    parameters = frozenset((key, type(value), value) for key, value in call.parameters.items() if key not in FREE_KEYS)
    return call.max_tokens, call.lossless, bool(call.stop), parameters, slo_metadata(call.metadata)


def slo_metadata(metadata: Mapping[str, str]) -> Hashable:
    """What of a call's metadata states what it asks for."""
    return frozenset(
        [(k, value) for k, value in metadata.items() if k in SLO_METADATA or k.startswith(METADATA_PREFIX)]
    )


class Verdicts:
    """Of one engine. All but ``forget`` is for the event loop."""

    def __init__(self) -> None:
        self._held: dict[Hashable, _Verdict] = {}
        self.era = 0
        """Changes when what was held is forgotten: an answer to a question of an earlier one is not to be learnt."""

    def __contains__(self, wishes: Hashable) -> bool:
        return wishes in self._held

    @property
    def any(self) -> bool:
        """Whether there are refusals that may hold."""
        return bool(self._held)

    def forget(self) -> None:
        """The engine has ended a step: it may admit now what it refused. From any thread."""
        self.era += 1
        self._held = {}

    def learn(self, asked: Asked, slo_class: str, error: RefusedError, now: float) -> None:
        """The engine has refused a call of that class."""
        if len(self._held) >= _MOST:
            self._held = {}
        most, old = asked.prompt_tokens + asked.max_tokens, self._held.get(asked.wishes)
        self._held[asked.wishes] = _Verdict(asked, slo_class, error, now, max(most, old.most_tokens) if old else most)

    def on(self, asked: Asked, now: float) -> tuple[RefusedError, str] | None:
        """What the engine would say to a call, if that is sure, and the call's class; else None."""
        verdict = self._held.get(asked.wishes)
        if verdict is None or now > verdict.at_s + HOLD_S or not _is_as_hard(asked, verdict, now):
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
    if asked.prompt_tokens + asked.max_tokens > verdict.most_tokens:
        return False
    later_s = asked.arrival_s - refused.arrival_s
    if asked.hard_deadline_s != refused.hard_deadline_s:  # without one they are infinite
        later_s = max(later_s, asked.hard_deadline_s - refused.hard_deadline_s)
    if error.retry_after_ms is None:  # too late even alone, as of when that was said: time has gone on
        later_s -= now - verdict.at_s
    return later_s <= error.missing_s * CERTAIN
