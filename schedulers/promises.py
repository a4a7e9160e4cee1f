"""Refusing at once what cannot be met: the demand bound at the smallest allowed points.

A request is accepted only if, with it, everything that has been promised can still be in time when everybody runs at
the smallest point allowed, by the 90th percentile of the cost model. So quality is given up first, and requests are
refused when there is none left to give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepwell.schedulers.admission import Admission
from stepwell.schedulers.book import Book, overrun_alone_s
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.pace import ANSWER_S
from stepwell.schedulers.plan import Drop, DropReason, Limits
from stepwell.schedulers.prices import PriceLists
from stepwell.schedulers.request import Request


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
        self._book: Book | None = None

    def admit(self, now: float, request: Request) -> Drop | None:
        """See :class:`~stepwell.schedulers.admission.Admission`."""
        if request.prompt_due_s == math.inf and request.slo.tpot_s == math.inf:
            self.count(request)
            return None
        now += ANSWER_S
        book = self._opened(request)
        start_s = max(now, self._made_s + book.step_s) if self._members else now
        overrun_s, entry = book.overrun_s(request, start_s)
        if overrun_s <= 0.0:
            self._members.append(request)
            book.add(entry)
            return None
        prices = self._price_lists.of(self._model, [request])
        hopeless = overrun_alone_s(request, now, prices, book.slowness, self._limits) > 0.0
        return Drop(request, DropReason.HOPELESS, None if hopeless else overrun_s)

    def count(self, request: Request) -> None:
        """See :class:`~stepwell.schedulers.admission.Admission`."""
        self._members.append(request)
        if self._book is not None:
            self._book.add(self._book.entry(request))

    def _opened(self, request: Request) -> Book:
        if self._book is None:
            self._book = Book(self._members, request, self._made_s, self._model, self._limits, self._price_lists)
        return self._book
