"""Refusing at once what cannot be met: the demand bound at the smallest allowed points.

A request is accepted only if, with it, everything that has been promised can still be in time when everybody runs at
the smallest point allowed, by the 90th percentile of the cost model. So quality is given up first, and requests are
refused when there is none left to give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stepwell.schedulers.admission import Admission
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.demand import Demand, standing, work_of
from stepwell.schedulers.fill import longest_s
from stepwell.schedulers.pace import ANSWER_S, MAX_CHECKS, bill, limited_spans
from stepwell.schedulers.plan import Drop, DropReason, Limits
from stepwell.schedulers.prices import PriceLists
from stepwell.schedulers.request import Phase, Request
from stepwell.schedulers.work import CONTEXT, TOKENS, Array, Work, check_times

SHARE = 0.95
"""Of the time until something is due, what all that is due by then may take at the smallest points."""


class Promises(Admission):
    """What has been promised, as of the moment it was made. The sums are made when the first request asks.

    Args:
        now: when this is made.
        waiting: requests without a seat.
        running: requests with one.
        model: its 90th percentile is used.
        limits: seats, and tokens of a step.
        price_lists: of the policy.
    """

    def __init__(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        model: StepCostModel,
        limits: Limits,
        price_lists: PriceLists,
    ) -> None:
        self._made_s, self._model, self._limits, self._price_lists = now, model, limits, price_lists
        self._members = [*running, *waiting]
        self._book: _Book | None = None

    def admit(self, now: float, request: Request) -> Drop | None:
        """See :class:`~stepwell.schedulers.admission.Admission`."""
        if request.prompt_due_s == math.inf and request.slo.tpot_s == math.inf:
            self.count(request)
            return None
        now += ANSWER_S
        book = self._opened(request)
        overrun_s = book.overrun_s(request, max(now, self._made_s + book.step_s) if self._members else now)
        if overrun_s <= 0.0:
            self.count(request)
            return None
        alone = _Book([], request, now, self._model, self._limits, self._price_lists)
        hopeless = alone.overrun_s(request, now) > 0.0
        return Drop(request, DropReason.HOPELESS, None if hopeless else overrun_s)

    def count(self, request: Request) -> None:
        """See :class:`~stepwell.schedulers.admission.Admission`."""
        self._members.append(request)
        if self._book is not None:
            self._book.add(request)

    def _opened(self, request: Request) -> _Book:
        if self._book is None:
            living = [r for r in self._members if r.phase is not Phase.DONE]
            self._book = _Book(living, request, self._made_s, self._model, self._limits, self._price_lists)
        return self._book


class _Book:
    """What is due by when, at the smallest points: the sums at ``_times``, and the rows to make others from."""

    def __init__(
        self,
        members: Sequence[Request],
        first: Request,
        now: float,
        model: StepCostModel,
        limits: Limits,
        price_lists: PriceLists,
    ) -> None:
        correction = model.correction
        self._slowness = max(correction.upper("decode"), correction.upper("mixed"))
        self._prices, self._limits = price_lists.of(model, [*members, first]), limits
        begun = [r for r in members if r.phase is not Phase.WAITING or r.generated_tokens]
        fresh = [r for r in members if r.phase is Phase.WAITING and not r.generated_tokens]
        self._fixed_s = float(self._prices.fixed_s(len(begun) + 1)[0])
        self.step_s = longest_s(self._prices, len(begun), self._slowness) * self._slowness
        """How long the step may take that runs meanwhile."""
        self._longest = max([r.known_tokens for r in begun], default=0)
        self._entries = self._priced(work_of([standing(r)[1] for r in begun], fresh), [*begun, *fresh], len(begun))
        self._times = check_times(self._entries.work, now, MAX_CHECKS)
        self._due_s, self._steps = _sums(self._entries, self._times)
        self._seat_by = [-math.inf if r.phase is Phase.RUNNING else r.prompt_due_s for r in (*begun, *fresh)]

    def _priced(self, work: Work, requests: Sequence[Request], num_begun: int = 0) -> _Entries:
        spans = limited_spans(requests, self._prices, num_begun)
        charged = bill(self._prices, work, spans, 1, self._longest, self._limits)
        return _Entries(work, charged.token_s[:1], charged.prompt_s[:1])

    def overrun_s(self, request: Request, start_s: float) -> float:
        """By how much time the work due by some instant exceeds the time until then, with ``request``; <= 0: it fits.

        Instants before anything of ``request`` is due do not count. ``start_s``: when work on it can begin.
        """
        own = self._priced(work_of([], [request]), [request])
        times, due_s, steps = self._with_times_of(own)
        own_s, own_steps = _sums(own, times)
        need_s = (due_s + own_s + np.maximum(steps, own_steps) * self._fixed_s) * self._slowness
        over_s = need_s - SHARE * (times - start_s)
        worst_s = float(over_s[(own_s > 0.0) | (own_steps > 0.0)].max(initial=-math.inf))
        return max(worst_s, self._seat_overrun_s(request, start_s))

    def _with_times_of(self, own: _Entries) -> tuple[Array, Array, Array]:
        """The times of this book and of ``own``, with the sums of this book."""
        further = check_times(own.work, -math.inf, MAX_CHECKS)
        due_s, steps = _sums(self._entries, further)
        return (
            np.concatenate((self._times, further)),
            np.concatenate((self._due_s, due_s)),
            np.concatenate((self._steps, steps)),
        )

    def _seat_overrun_s(self, request: Request, start_s: float) -> float:
        """The same for the seats: those before it in line must have left, at the pace of a full house."""
        seats, due_s, work = self._limits.max_running, request.prompt_due_s, self._entries.work
        num_ahead = sum([by <= due_s for by in self._seat_by])
        if due_s == math.inf or num_ahead < seats:
            return -math.inf
        prices, keys = self._prices, float(work[:, CONTEXT].mean())
        token_s = float(prices.fixed_s(seats)[0]) / seats + prices.decode[0] + keys * prices.key[0]
        until_seated_s = token_s * float(work[:, TOKENS].mean()) * (num_ahead - seats + 1)
        return until_seated_s * self._slowness - SHARE * (due_s - start_s)

    def add(self, request: Request) -> None:
        """``request`` has been promised to be in time."""
        own = self._priced(work_of([], [request]), [request])
        self._times, due_s, steps = self._with_times_of(own)
        own_s, own_steps = _sums(own, self._times)
        self._due_s, self._steps = due_s + own_s, np.maximum(steps, own_steps)
        self._entries = self._entries.with_(own)
        self._seat_by.append(request.prompt_due_s)


class _Entries(NamedTuple):
    """Work and what it costs at the smallest points: [1, requests] seconds of a token, of a prompt."""

    work: Work
    token_s: Array
    prompt_s: Array

    def with_(self, other: _Entries) -> _Entries:
        """Both."""
        pairs = zip(self, other, (0, 1, 1), strict=True)
        return _Entries(*(np.concatenate((mine, theirs), axis=axis) for mine, theirs, axis in pairs))


def _sums(entries: _Entries, times: Array) -> tuple[Array, Array]:
    """[times]: seconds due apart from the fixed parts of steps, and the number of steps."""
    demand = Demand(entries.work, times)
    return demand.seconds(entries.token_s, entries.prompt_s)[:, 0], demand.num_steps()
