"""What is due by when, at the smallest points: sums that a newcomer is added to without making them anew.

Demand is checked at instants: when something of what was promised is due, and when something of the newcomer is. The
sums at the former are kept; at the latter they are made from columns of all requests, one pass for both instants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from heapq import heapify, heapreplace
from typing import NamedTuple

import numpy as np

from stepwell.schedulers.correction import KINDS, Spread
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.fill import longest_s
from stepwell.schedulers.pace import MAX_CHECKS, bill, limited_spans
from stepwell.schedulers.plan import Limits, Slice
from stepwell.schedulers.prices import LevelCosts, PriceLists
from stepwell.schedulers.request import Phase, Request
from stepwell.schedulers.roll import work_left
from stepwell.schedulers.work import (
    A_TOKEN,
    CONTEXT,
    OFFSET,
    PROMPT,
    PROMPT_DUE_S,
    RATE,
    TOKENS,
    Array,
    Row,
    Work,
    check_times,
    unpack,
)

SHARE = 0.95
"""Of the time until something is due, what all that is due by then may take at the smallest points."""
_SPARE = 64
"""Columns, and instants, that are set aside for newcomers at once."""
_TOKENS, _PROMPT_DUE_S = 2, 4
"""Of the columns, which are: rate, offset and number of tokens, seconds of one, due time and seconds of the prompt."""


class Entry(NamedTuple):
    """A newcomer in the book."""

    row: Row
    """All of its work."""
    token_s: float
    """A generated token at its smallest point."""
    prompt_s: float
    """Its prompt."""
    instants: list[float]
    """When something of it is due."""
    due_s: Array
    """[instants of the book, then its own]: seconds of it that are due."""
    steps: Array | None
    """And generated tokens; None if it generates none after its prompt."""


class Book:
    """Sums at instants, over ``members`` and those that are added.

    Args:
        members: whom something was promised; those that are over do not count.
        first: the first newcomer.
        now: time.
        model: of many steps together it says more than of one.
        limits: seats, and tokens of a step.
        price_lists: of the policy.
        ahead: what of the members' work counts as done already.
    """

    def __init__(
        self,
        members: Sequence[Request],
        first: Request,
        now: float,
        model: StepCostModel,
        limits: Limits,
        price_lists: PriceLists,
        ahead: Sequence[Slice] = (),
    ) -> None:
        correction, self._toll = model.correction, model.toll
        self.spread = correction.overall
        """Of actual over predicted seconds."""
        slowness = max(correction.upper(kind) for kind in KINDS)
        self.unsteadiness = max(correction.upper(kind) / correction.median(kind) for kind in KINDS)
        """The same over its median."""
        seated, put_back, fresh = _parted(members)
        begun, self._num_seated = seated + put_back, len(seated)
        self._put_back_by = [r.prompt_due_s for r in put_back]
        everybody = [*begun, *fresh, first]
        self._prices = prices = price_lists.of(model, everybody)
        self._limits = limits
        self._fixed_s = prices.fixed(len(begun) + 1)[0]
        self._step_s = longest_s(prices, len(begun), slowness)
        self.step_s = self._step_s * slowness
        """How long the step may take that runs meanwhile, if it is not known."""
        self._longest = max([r.known_tokens for r in begun], default=0)
        work = work_left(begun, fresh).work
        _move_on(work, begun, ahead)
        spans = limited_spans(everybody[:-1], prices, len(begun))
        charged = bill(prices, work, spans, 1, self._longest, limits, num_rungs=1)
        assert charged.prompt_s is not None
        self._num = num = len(work)
        self._columns = np.empty((6, num + _SPARE))
        columns = work.T
        token_s, prompt_s = charged.token_s[0], charged.prompt_s[0]
        for number, column in enumerate(
            (columns[RATE], columns[OFFSET], columns[TOKENS], token_s, columns[PROMPT_DUE_S], prompt_s)
        ):
            self._columns[number, :num] = column
        self._work = work
        self._generate = bool(columns[TOKENS].any())
        """Whether anybody is to generate tokens after a prompt."""
        self._added_context = 0.0
        """Keys that a token reads on average: of those that were added."""
        times = check_times(work, now, MAX_CHECKS)
        self._num_instants = 0
        self._instants = np.empty((3, len(times) + _SPARE))
        """Times; seconds due by them, apart from the fixed parts of steps; number of steps."""
        self._sum_at(times)
        self._num_instants = len(times)

    def overrun_s(self, request: Request, start_s: float, now: float | None = None) -> tuple[float, Entry]:
        """By how much time the work due by some instant exceeds the time until then, with ``request``; <= 0: it fits.
        And what :meth:`add` takes.

        Instants before anything of ``request`` is due do not count. ``start_s``: when work on it can begin; ``now``:
        from when on calls may come that take time, None = never.
        """
        entry = self.entry(request)
        times, due_s, steps = self._instants[:, : self._num_instants + len(entry.instants)]
        own_s, own_steps = entry.due_s, entry.steps
        over_s = (steps if own_steps is None else np.maximum(steps, own_steps)) * self._fixed_s
        over_s += due_s
        over_s += own_s
        counts = (own_s if own_steps is None else own_s + own_steps) > 0.0
        over_s, times = self.spread.seconds_each(over_s[counts], self._step_s), times[counts]
        over_s -= SHARE * times
        if now is not None and (lost_s := self._toll.lost_each_s(now, times)) is not None:
            over_s += lost_s
        worst_s = np.maximum.reduce(over_s, initial=-math.inf).item() + SHARE * start_s
        seat_s = self._seat_overrun_s(request, start_s, entry)
        if now is not None and seat_s > -math.inf:
            seat_s += self._toll.lost_s(now, request.prompt_due_s)
        return max(worst_s, seat_s), entry

    def entry(self, request: Request) -> Entry:
        """``request`` at its smallest point; its own instants, with the sums of this book, become those after the
        last. Good until the next call."""
        row, token_s, prompt_s, instants = _priced(request, self._prices, self._longest, self._limits)
        if instants:
            self._sum_at(instants)
        times = self._instants[0, : self._num_instants + len(instants)]
        return Entry(row, token_s, prompt_s, instants, *_demand_of(row, token_s, prompt_s, times))

    def add(self, entry: Entry) -> None:
        """It has been promised to be in time: the last entry that was made."""
        self._num_instants += len(entry.instants)
        _, due_s, steps = self._instants[:, : self._num_instants]
        due_s += entry.due_s
        if entry.steps is not None:
            np.maximum(steps, entry.steps, out=steps)
        if self._num == self._columns.shape[1]:
            self._columns = _with_room(self._columns)
        _, prompt_due_s, tokens, rate, offset, _, context, _ = entry.row
        self._columns[:, self._num] = rate, offset, tokens, entry.token_s, prompt_due_s, entry.prompt_s
        self._num += 1
        self._generate = self._generate or tokens > 0.0
        self._added_context += context

    def _sum_at(self, times: Sequence[float] | Array) -> None:
        """Sums at ``times``, behind the instants that there are."""
        first, end = self._num_instants, self._num_instants + len(times)
        if end > self._instants.shape[1]:
            self._instants = _with_room(self._instants)
        rate, offset, tokens, token_s, prompt_due_s, prompt_s = self._columns[:, : self._num]
        own = self._instants[:, first:end]
        own[0] = times
        at = own[0, :, None]
        due = np.empty((len(times), self._num))
        np.less_equal(prompt_due_s, at, out=due)
        np.matmul(due, prompt_s, out=own[1])
        if self._generate:
            np.multiply(rate, at, out=due)
            due += offset
            np.minimum(due, tokens, out=due)
            np.maximum(due, 0.0, out=due)
            np.maximum.reduce(due, axis=1, initial=0.0, out=own[2])
            own[1] += due @ token_s
        else:
            own[2] = 0.0

    def _seat_overrun_s(self, request: Request, start_s: float, entry: Entry) -> float:
        """The same for the seats: as many must have left as are before it in line, at the pace of a full house. Where
        it fits, the least by which it may be too early; an earlier seat is not looked for."""
        seats, due_s = self._limits.max_running, request.prompt_due_s
        if due_s == math.inf or not self._generate or self._num < seats:
            return -math.inf
        line_due_s = self._columns[_PROMPT_DUE_S, self._num_seated : self._num].copy()
        line_due_s[: len(self._put_back_by)] = self._put_back_by
        before = np.flatnonzero(line_due_s <= due_s)
        if self._num_seated + len(before) < seats:
            return -math.inf
        prices, keys = self._prices, (self._sum_context + self._added_context) / self._num
        full_s = prices.fixed(seats)[0] + seats * (prices.decode[0] + keys * prices.key[0])
        _, _, tokens, _, prompt_due_s, prompt_s = self._columns[:, : self._num]
        prompts_s = ((prompt_due_s <= due_s) @ prompt_s).item() + entry.prompt_s
        line = tokens[self._num_seated :]
        # All seats together have no more than that to do, so one of them has no more than its share of it.
        num_steps = (sum(self._tokens_left) + line[before].sum().item()) / seats
        latest_s = SHARE * (due_s - start_s)
        overrun_s = self.spread.seconds(num_steps * full_s + prompts_s, self._step_s) - latest_s
        if overrun_s > 0.0:
            in_order = before[line_due_s[before].argsort(kind="stable")]
            num_steps = _steps_until_seated(self._tokens_left, line[in_order].tolist(), seats)
            overrun_s = self.spread.seconds(num_steps * full_s + prompts_s, self._step_s) - latest_s
        return overrun_s

    @cached_property
    def _tokens_left(self) -> list[float]:
        """Of those that have a seat, ascending."""
        tokens: list[float] = np.sort(self._work[: self._num_seated, TOKENS]).tolist()
        return tokens

    @cached_property
    def _sum_context(self) -> float:
        """Keys that a token reads on average: of all members."""
        return float(self._work[:, CONTEXT].sum())


def _steps_until_seated(tokens_left: Sequence[float], line: Sequence[float], seats: int) -> float:
    """How many steps in which all that sit generate a token, until one gets a seat who comes after ``line``.

    Args:
        tokens_left: of those that sit, ascending.
        line: tokens of those that wait for a seat, in order.
        seats: so many there are; no more than those that sit and wait.
    """
    num_free = max(seats - len(tokens_left), 0)
    leave = [*tokens_left, *line[:num_free]]
    heapify(leave)
    for tokens in line[num_free:]:
        heapreplace(leave, leave[0] + tokens)
    return leave[0]


def overrun_alone_s(request: Request, start_s: float, prices: LevelCosts, spread: Spread, limits: Limits) -> float:
    """:meth:`Book.overrun_s` of a book without members. ``spread``: of actual over predicted seconds."""
    row, token_s, prompt_s, instants = _priced(request, prices, 0, limits)
    fixed_s, worst_s = prices.fixed(1)[0], -math.inf
    step_s = longest_s(prices, 0, spread.upper)
    _, prompt_due_s, tokens, rate, offset, _, _, _ = row
    for time in instants:
        due = max(min(rate * time + offset, tokens), 0.0)
        own_s = due * token_s + (prompt_s if prompt_due_s <= time else 0.0)
        if own_s > 0.0 or due > 0.0:
            worst_s = max(worst_s, spread.seconds(own_s + due * fixed_s, step_s) - SHARE * (time - start_s))
    return worst_s


def _parted(members: Sequence[Request]) -> tuple[list[Request], list[Request], list[Request]]:
    """Those that have a seat, those that were put back, and those that have not begun. Each phase is read once: the
    engine may be moving them on."""
    waiting, done = Phase.WAITING, Phase.DONE
    seated: list[Request] = []
    put_back: list[Request] = []
    fresh: list[Request] = []
    for request in members:
        phase = request.phase
        if phase is waiting:
            (put_back if request.generated_tokens else fresh).append(request)
        elif phase is not done:
            seated.append(request)
    return seated, put_back, fresh


def _move_on(work: Work, begun: Sequence[Request], ahead: Sequence[Slice]) -> None:
    """Take ``ahead`` off the rows of ``begun``, the first of ``work``."""
    row_of = {id(request): i for i, request in enumerate(begun)} if ahead else {}
    for slice_ in ahead:
        if (i := row_of.get(id(slice_.request))) is None:  # it did not get a seat
            continue
        own = work[i]
        if own[PROMPT] == 0.0:
            own += A_TOKEN
        elif slice_.num_tokens < own[PROMPT]:
            own[PROMPT] -= slice_.num_tokens
        else:
            own[PROMPT], own[PROMPT_DUE_S] = 0.0, math.inf


def _priced(
    request: Request, prices: LevelCosts, longest: int, limits: Limits
) -> tuple[Row, float, float, list[float]]:
    """A newcomer among sequences of up to ``longest`` tokens: the first fields of its :class:`Entry`."""
    row = unpack(request.whole_work)
    prompt, prompt_due_s, tokens, _, _, end_s, context, _ = row
    limited = len(request.points) != len(prices.points) or len(prices.points) == 1
    level = prices.span(request)[0] if limited else 0
    token_s = prices.decode[level] + prices.key[level] * (max(context, longest) if prices.padded else context)
    seen = context - 0.5 * (tokens + prompt - min(prompt, limits.max_step_tokens))
    seen = max(seen, min(context, 0.5 * prompt))
    row_s = prices.row[level] + prices.fixed(1)[0] / limits.max_step_tokens
    prompt_s = (prices.pair[level] * seen + row_s) * prompt + prices.prompt[level]
    dues_s = (prompt_due_s, end_s) if tokens else (prompt_due_s,)  # no tokens follow what is answered as a whole
    return row, token_s, prompt_s, [time for time in dues_s if time < math.inf]


def _demand_of(row: Row, token_s: float, prompt_s: float, times: Array) -> tuple[Array, Array | None]:
    """[times]: seconds of a newcomer that are due, and generated tokens, None if there are none to be."""
    _, prompt_due_s, tokens, rate, offset, _, _, _ = row
    own_s: Array = np.multiply(times >= prompt_due_s, prompt_s, dtype=np.float64)
    if not tokens:
        return own_s, None
    due = times * rate
    due += offset
    np.minimum(due, tokens, out=due)
    np.maximum(due, 0.0, out=due)
    own_s += due * token_s
    return own_s, due


def _with_room(table: Array) -> Array:
    """``table`` with more columns, to be filled."""
    return np.concatenate((table, np.zeros((len(table), max(_SPARE, table.shape[1])))), axis=1)
