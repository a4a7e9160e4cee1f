"""Who is here and what is left to do for them, in rows of :mod:`~stepwell.schedulers.work`.

Most of a row stays the same for as long as its request runs, and most requests of a step are those of the step before:
a policy keeps what it worked out for them (:class:`Ledger`), which is used again only for the same requests, and has no
part in what is decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from stepwell.schedulers.request import Request
from stepwell.schedulers.work import (
    CONTEXT,
    END_S,
    OFFSET,
    PERIOD_S,
    PROMPT,
    PROMPT_DUE_S,
    TOKENS,
    Array,
    Row,
    Work,
    row,
    table,
)


def standing(request: Request) -> tuple[float, Row]:
    """Of a request that has begun: when its next token is due, and what is left to do."""
    generated, tpot_s, deadline_s = request.generated_tokens, request.slo.tpot_s, request.deadline_s
    due_s = request.first_due_s
    if generated:
        due_s = (due_s if due_s < math.inf else request.first_token_s) + generated * tpot_s
    known = request.known_tokens
    pending, left = known - request.computed_tokens, request.max_tokens - generated
    if generated and pending == 1:
        rest = row(0, math.inf, left, due_s, tpot_s, deadline_s, known)
        return (due_s if due_s < deadline_s else deadline_s), rest
    due_s = min(due_s, deadline_s)
    return due_s, row(pending, due_s, left - 1, due_s + tpot_s, tpot_s, deadline_s, known)


def work_of(begun: Sequence[Row], waiting: Iterable[Request]) -> Work:
    """Rows of requests that have begun, then those of ``waiting``: all of their work."""
    return table(begun, [request.whole_work for request in waiting])


class WorkLeft(NamedTuple):
    """What is left to do for requests that run and, below them, for some that wait."""

    work: Work
    due_s: Array
    """When the next token is due of each that runs."""
    reading: list[int]
    """Rows of those that run and have more of their prompt to read."""


class Roll:
    """Requests that run and some that wait, with all of their rows that stays the same from step to step.

    Args:
        requests: those that run, then those that wait.
        generated: tokens that those that run have generated.
    """

    def __init__(self, requests: Sequence[Request], generated: Sequence[int]) -> None:
        self.requests = list(requests)
        self.num_running = num_running = len(generated)
        running, waiting = self.requests[:num_running], self.requests[num_running:]
        self.put_back = [(i, _progress(r)) for i, r in enumerate(waiting, num_running) if r.generated_tokens]
        """Of those that wait, whoever has generated tokens, and how far it is."""
        self._have_begun = [n > 0 for n in generated]
        self._num_fresh = generated.count(0)
        known = list(zip(running, self._have_begun, strict=True))
        packed = [r.decoding_work if has_begun else r.whole_work for r, has_begun in known]
        self._rows: Work = np.asfortranarray(table((), packed + [r.whole_work for r in waiting]))
        for i, _ in self.put_back:
            self._rows[i] = standing(self.requests[i])[1]
        self.odd = {i for i, (r, has_begun) in enumerate(known) if r.first_due_s == math.inf or not has_begun}
        """Rows of which more than the number of tokens changes."""
        self._limited: tuple[int, list[int]] = -1, []

    @cached_property
    def max_tokens(self) -> Array:
        """That each may generate in all."""
        return np.array([r.max_tokens for r in self.requests], np.float64)

    @cached_property
    def waiting_work(self) -> tuple[list[float], list[float], list[float]]:
        """Of each that waits: when its prompt is due, tokens to be generated after that, when they are due."""
        columns = self._rows[self.num_running :].T
        return columns[PROMPT_DUE_S].tolist(), columns[TOKENS].tolist(), columns[END_S].tolist()

    def is_of(self, requests: Sequence[Request], generated: Sequence[int]) -> bool:
        """Whether it is the one of these."""
        return (
            len(generated) == self.num_running
            and requests == self.requests
            and generated.count(0) == self._num_fresh  # nobody's tokens are taken back
            and self.put_back == [(i, _progress(requests[i])) for i, _ in self.put_back]
        )

    def left(self, generated: Sequence[int]) -> WorkLeft:
        """What is left to do, now that those that run have generated so many tokens."""
        running, work = self.requests[: self.num_running], self._rows.copy("F")
        own = work[: self.num_running]
        due_s = _move_on(own.T, np.array(generated, np.float64))
        reading = [i for i, r in enumerate(running) if r.known_tokens - r.computed_tokens != 1]
        for i in self.odd.union(reading):
            request = running[i]
            if self._have_begun[i]:
                due_s[i], own[i] = standing(request)
            else:
                due_s[i], own[i, PROMPT] = request.prompt_due_s, request.known_tokens - request.computed_tokens
        return WorkLeft(work, due_s, reading)

    def limited(self, num_levels: int) -> list[int]:
        """Those that may not use all levels of so many."""
        if self._limited[0] != num_levels:
            self._limited = num_levels, limited(self.requests, num_levels, self.num_running)
        return self._limited[1]


def _move_on(columns: Work, generated: Array) -> Array:
    """Take tokens that each has generated off the columns of its row, as :data:`A_TOKEN` says. Returns when the next
    one of each is due."""
    offset, context = columns[OFFSET], columns[CONTEXT]
    columns[TOKENS] -= generated
    offset -= generated
    context += 0.5 * generated
    due_s: Array = (1.0 - offset) * columns[PERIOD_S]
    return due_s


def work_left(running: Sequence[Request], waiting: Sequence[Request]) -> WorkLeft:
    """Of ``running`` and ``waiting``. Those that were put back wait."""
    generated = [r.generated_tokens for r in running]  # once: the engine may be moving them on
    return Roll([*running, *waiting], generated).left(generated)


def limited(requests: Sequence[Request], num_levels: int, num_begun: int) -> list[int]:
    """Who of ``requests`` may not use all levels of so many. The first ``num_begun`` have begun."""
    if num_levels == 1:
        return list(range(len(requests)))
    odd = [i for i, r in enumerate(requests) if len(r.points) != num_levels]
    return odd + [i for i, r in enumerate(requests[:num_begun]) if not r.may_switch and len(r.points) == num_levels]


class Ledger:
    """What a policy keeps from step to step: due times of the last line, and the last roll."""

    def __init__(self) -> None:
        self._due_s: tuple[Sequence[Request], slice, Array] = (), slice(0), np.empty(0)
        self._roll = Roll((), ())

    def due_s(self, line: Sequence[Request], which: slice) -> Array:
        """When the prompts of some in ``line`` are due."""
        of, known, due_s = self._due_s
        if of is not line or known != which:
            due_s = np.array([r.prompt_due_s for r in line[which]], np.float64)
            self._due_s = line, which, due_s
        return due_s

    def roll(self, requests: Sequence[Request], generated: Sequence[int]) -> Roll:
        """See :class:`Roll`."""
        if not self._roll.is_of(requests, generated):
            self._roll = Roll(requests, generated)
        return self._roll


_progress = attrgetter("generated_tokens", "known_tokens", "computed_tokens")
