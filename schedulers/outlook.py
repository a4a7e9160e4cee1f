"""All that waits and runs, in numbers, as one step is decided from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stepwell.schedulers.demand import work_left
from stepwell.schedulers.request import Request
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
    """

    def __init__(self, now: float, line: Sequence[Request], running: Sequence[Request], max_running: int) -> None:
        self.now = now
        stride = -(-max(len(line) - HEAD, 0) // TAIL) or 1
        seen = [*line[:HEAD], *line[HEAD + stride // 2 :: stride]]
        self.requests: list[Request] = [*running, *seen]
        self.num_running, self.num_exact = len(running), len(running) + min(len(line), HEAD)
        self.work, due_s, self.reading = work_left(running, seen)
        self.max_tokens: list[int] = [r.max_tokens for r in self.requests]
        """That each may generate in all."""
        self.weights: Array | None = None
        """How many requests each row stands for; None = one."""
        if stride > 1:
            self.weights = np.ones(len(self.work))
            self.weights[self.num_exact :] = stride
        self.next_due_s = math.inf
        """From now, when the next token of somebody who decodes is due; who is late does not count."""
        self.decoding = Dues([], [])
        """Those that can generate a token at once."""
        self.longest = 0
        """Tokens of the longest sequence that decodes."""
        if running:
            successors = line[max(max_running - len(running), 0) :][: len(running)]
            due_s -= now
            self._look_at_running(running, due_s, successors)
        self.has_prompts = len(self.requests) > len(self.decoding.indices)
        """Whether anybody has more of a prompt to read."""

    def _look_at_running(self, running: Sequence[Request], due_s: Array, successors: Sequence[Request]) -> None:
        """``due_s``: when their next tokens are due, from now; those that must make room are due as if they had to
        leave."""
        decodes = np.ones(len(running), np.bool_)
        decodes[self.reading] = False
        of_decoding = due_s[decodes] if self.reading else due_s
        self.next_due_s = min([due for due in of_decoding.tolist() if due > LATE_S], default=math.inf)
        if successors:
            successor_due_s = np.array([r.prompt_due_s for r in successors])
            tokens_left = self.work[: len(running), TOKENS]
            self._make_room(due_s, *leaving(self.now, tokens_left, successor_due_s))
        if due_s.max() == math.inf:
            due_s = np.where(due_s < math.inf, due_s, [r.patience_s - self.now for r in running])
        order = due_s.argsort(kind="stable")
        if self.reading:
            order = order[decodes[order]]
        self.decoding = Dues(due_s[order].tolist(), order.tolist())
        self.longest = max([running[i].known_tokens for i in self.decoding.indices], default=0)

    def _make_room(self, due_s: Array, rows: npt.NDArray[np.intp], left_s: Array) -> None:
        """Hurry those that must leave in ``left_s``: a steady rate until then, unless all is due earlier anyway."""
        columns = self.work.T
        hurried = self.now + left_s < columns[END_S, rows]
        rows, left_s = rows[hurried], left_s[hurried]
        tokens = np.maximum(columns[TOKENS, rows], 1.0)
        rate = tokens / left_s
        columns[RATE, rows], columns[OFFSET, rows], columns[END_S, rows] = rate, -self.now * rate, self.now + left_s
        columns[PERIOD_S, rows] = period_s = left_s / tokens
        due_s[rows] = np.minimum(due_s[rows], period_s)

    def prompts(self, max_newcomers: int, max_tokens: int) -> Dues:
        """Prompts that may advance, most urgent first: of half-read ones as many as fill a step, and as many newcomers
        again, at most ``max_newcomers``: there may be no pages for them."""
        first = self.num_running
        newcomers = range(first, min(first + max_newcomers, self.num_exact))
        dues = sorted([*self._filling(self.reading, max_tokens), *self._filling(newcomers, max_tokens)])
        return Dues([due_s for due_s, _ in dues], [i for _, i in dues])

    def _filling(self, rows: Sequence[int], max_tokens: int) -> list[tuple[float, int]]:
        now, requests = self.now, self.requests
        dues = sorted([(requests[i].urgency_s - now, i) for i in rows])
        for number, (_, i) in enumerate(dues, 1):
            max_tokens -= requests[i].pending_tokens
            if max_tokens <= 0:
                return dues[:number]
        return dues
