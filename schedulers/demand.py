"""How much work is due by when: what the engine must not fall behind.

The demand bound of real-time scheduling (Baruah, Rosier and Howell, RTSS 1990): deadlines can be met on one processor
if, for every time t, the work due by t fits into the time until t. Here work has a level, so the bound says which
levels are affordable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from stepwell.schedulers.request import Request
from stepwell.schedulers.work import (
    A_TOKEN,
    OFFSET,
    PERIOD_S,
    PROMPT,
    PROMPT_DUE_S,
    RATE,
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


def work_left(running: Sequence[Request], waiting: Sequence[Request]) -> WorkLeft:
    """Of ``running`` and ``waiting``. Those that were put back wait."""
    num_running = len(running)
    done = [r.generated_tokens for r in running]
    rows = [r.decoding_work if n else r.whole_work for r, n in zip(running, done, strict=True)]
    work = table((), rows + [r.whole_work for r in waiting])
    own = work[:num_running]
    own += np.array(done, np.float64)[:, None] * A_TOKEN
    columns = own.T
    due_s: Array = (1.0 - columns[OFFSET]) * columns[PERIOD_S]
    reading = [i for i, r in enumerate(running) if r.known_tokens - r.computed_tokens != 1]
    odd = [i for i, r in enumerate(running) if r.first_due_s == math.inf or not done[i]]
    for i in {*reading, *odd}:
        request = running[i]
        if done[i]:
            due_s[i], own[i] = standing(request)
        else:
            due_s[i], own[i, PROMPT] = request.prompt_due_s, request.known_tokens - request.computed_tokens
    for i in [i for i, r in enumerate(waiting, num_running) if r.generated_tokens]:
        work[i] = standing(waiting[i - num_running])[1]
    return WorkLeft(work, due_s, reading)


class Demand:
    """What of ``work`` is due by each of ``times``, ascending."""

    def __init__(self, work: Work, times: Array) -> None:
        self._work, self._at = work, times[:, None]
        columns, at = work.T, self._at
        due = columns[RATE] * at
        due += columns[OFFSET]
        np.minimum(due, columns[TOKENS], out=due)
        np.maximum(due, 0.0, out=due)
        self._tokens = due
        """[times, requests]: generated tokens."""

    def num_steps(self) -> Array:
        """[times]: steps it takes at least to generate so many tokens one after the other."""
        steps: Array = self._tokens.max(1, initial=0.0)
        return steps

    def seconds(self, token_s: Array, prompt_s: Array | None) -> Array:
        """[times, levels] engine time, fixed parts of decoding steps apart; the arguments: [levels, requests] of a
        token, of a prompt (None = nobody has any)."""
        seconds: Array = self._tokens @ token_s.T
        if prompt_s is not None:
            seconds += (self._work[:, PROMPT_DUE_S] <= self._at) @ prompt_s.T
        return seconds
