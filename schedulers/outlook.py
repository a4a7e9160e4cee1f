"""All that waits and runs, in numbers, as one step is decided from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from stepwell.schedulers.request import Request
from stepwell.schedulers.roll import Ledger
from stepwell.schedulers.turnover import leaving
from stepwell.schedulers.work import END_S, OFFSET, PERIOD_S, RATE, TOKENS, Array

HEAD, TAIL = 32, 16
"""Of those in line, so many are looked at one by one; the others are represented by so many at most."""
LATE_S = 0.002
"""Whose token is due sooner than this is late already and shortens no step."""


class Dues(NamedTuple):
    """Requests that may advance, most urgent first."""

    due_s: list[float]
    """When the next token of each is due, from now."""
    indices: list[int]
    """Of their rows."""


class Outlook:
    """Rows of work: of those that run, of the head of the line, and of a sample of its tail.

    Args:
        now: time.
        line: those that wait, most urgent first.
        running: those that run.
        max_running: seats.
        ledger: of the policy.
    """

    def __init__(
        self, now: float, line: Sequence[Request], running: Sequence[Request], max_running: int, ledger: Ledger
    ) -> None:
        self.now = now
        stride = -(-max(len(line) - HEAD, 0) // TAIL) or 1
        self.requests: list[Request] = [*running, *line[:HEAD], *line[HEAD + stride // 2 :: stride]]
        self.num_running, self.num_exact = len(running), len(running) + min(len(line), HEAD)
        generated = [r.generated_tokens for r in running]
        self.roll = ledger.roll(self.requests, generated)
        self.work, due_s, self.reading = self.roll.left(generated)
        self.weights = _weights(len(self.work), self.num_exact, stride) if stride > 1 else None
        """How many requests each row stands for; None = one."""
        self.next_due_s = math.inf
        """From now, when the next token of somebody who decodes is due; who is late does not count."""
        self.decoding = Dues([], [])
        """Those that can generate a token at once."""
        if running:
            seats = max(max_running - len(running), 0)
            due_s -= now
            self._look_at_running(due_s, ledger.due_s(line, slice(seats, seats + len(running))))
        self.has_prompts = len(self.requests) > len(self.decoding.indices)
        """Whether anybody has more of a prompt to read."""

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence that decodes."""
        return max([self.requests[i].known_tokens for i in self.decoding.indices], default=0)

    def _look_at_running(self, due_s: Array, successor_due_s: Array) -> None:
        """``due_s``: when their next tokens are due, from now; those that must make room for successors are due as if
        they had to leave."""
        reading, dues = self.reading, due_s.tolist()
        for i in reading:
            dues[i] = -math.inf
        dues_ahead: list[float] = [due for due in dues if due > LATE_S]
        self.next_due_s = min(dues_ahead) if dues_ahead else math.inf
        if len(successor_due_s):
            self._make_room(due_s, successor_due_s)
        if math.inf in dues_ahead:
            patience_s = [r.patience_s - self.now for r in self.requests[: self.num_running]]
            due_s = np.where(due_s < math.inf, due_s, patience_s)
        for i in reading:
            due_s[i] = math.inf  # behind those that decode, who all count as due some time
        order = due_s.argsort(kind="stable")[: len(dues) - len(reading)]
        self.decoding = Dues(due_s.take(order).tolist(), order.tolist())

    def _make_room(self, due_s: Array, successor_due_s: Array) -> None:
        """Hurry those that must leave for successors: a steady rate until then, unless all is due earlier anyway."""
        own = self.work[: self.num_running].T
        tokens = own[TOKENS]
        left_s = leaving(self.now, tokens, successor_due_s)
        leave_s = left_s + self.now
        hurried = leave_s < own[END_S]
        tokens = np.maximum(tokens, 1.0)
        rate, period_s = tokens / left_s, left_s / tokens
        np.putmask(own[RATE], hurried, rate)
        np.putmask(own[OFFSET], hurried, rate * -self.now)
        np.putmask(own[END_S], hurried, leave_s)
        np.putmask(own[PERIOD_S], hurried, period_s)
        np.putmask(due_s, hurried, np.minimum(due_s, period_s))

    def prompts(self, max_newcomers: int, max_tokens: int) -> Dues:
        """Prompts that may advance, most urgent first: of half-read ones as many as fill a step, and as many newcomers
        again, at most ``max_newcomers``: there may be no pages for them."""
        first = self.num_running
        newcomers = range(first, min(first + max_newcomers, self.num_exact))
        if not newcomers and not self.reading:
            return Dues([], [])
        dues = self._filling(self.reading, max_tokens) if self.reading else []
        dues += self._filling(newcomers, max_tokens) if self.roll.put_back else self._first(newcomers, max_tokens)
        dues.sort()
        return Dues([due_s for due_s, _ in dues], [i for _, i in dues])

    def _first(self, newcomers: Iterable[int], max_tokens: int) -> list[tuple[float, int]]:
        """The same as ``_filling``: whoever has generated nothing is as urgent as its rank, by which the line is."""
        now, requests, dues = self.now, self.requests, []
        for i in newcomers:
            dues.append((requests[i].rank_s - now, i))
            max_tokens -= requests[i].pending_tokens
            if max_tokens <= 0:
                break
        return dues

    def _filling(self, rows: Sequence[int], max_tokens: int) -> list[tuple[float, int]]:
        now, requests = self.now, self.requests
        dues = sorted([(requests[i].urgency_s - now, i) for i in rows])
        for number, (_, i) in enumerate(dues, 1):
            max_tokens -= requests[i].pending_tokens
            if max_tokens <= 0:
                return dues[:number]
        return dues


@lru_cache(maxsize=64)
def _weights(num: int, num_exact: int, stride: int) -> Array:
    """[num]: 1 for the first ``num_exact``, ``stride`` for the others. Not to be changed."""
    weights: Array = np.ones(num)
    weights[num_exact:] = stride
    return weights
