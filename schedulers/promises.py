"""Refusing at once what cannot be met: the demand bound at the smallest allowed points.

A request is accepted only if, with it, everything that has been promised can still be in time when everybody runs at
the smallest point allowed, nine times in ten by the cost model. So quality is given up first, and requests are
refused when there is none left to give.

An idle engine that takes itself for slower than it is would refuse everybody, and never learn better. So it lets one in
that would be in time if the machine were a few times faster than it last was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepwell.schedulers.admission import Admission
from stepwell.schedulers.book import Book, overrun_alone_s
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Drop, DropReason, Limits, StepPlan
from stepwell.schedulers.prices import PriceLists
from stepwell.schedulers.request import Request

STALE_S = 1.0
"""After an engine has run nothing for so long, what it knows of the machine's pace may be wrong ..."""
DOUBT = 4.0
"""... by up to this factor: a profile taken, or steps run, while something else had the processor."""


class Promises(Admission):
    """What has been promised, as of the moment it was made. The sums are made when the first request asks.

    Args:
        now: when this is made.
        waiting: requests without a seat.
        running: requests with one.
        model: says how long steps take, how sure that is, and how far ahead of the clock to plan.
        limits: seats, and tokens of a step.
        price_lists: of the policy.
        step: what begins now; it is work that is as good as done, and until it ends nothing else is. None = unknown.
    """

    def __init__(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        model: StepCostModel,
        limits: Limits,
        price_lists: PriceLists,
        step: StepPlan | None = None,
    ) -> None:
        self._answer_s = model.answer_way.seconds
        self._made_s, self._model = now + self._answer_s, model
        self._limits, self._price_lists = limits, price_lists
        self._step = step
        self._computed = [s.request.computed_tokens for s in step.slices] if step else []
        """Of its requests, in order: whose has changed has been moved on already."""
        self._members = [*running, *waiting]
        self._book: Book | None = None

    def admit(self, now: float, request: Request) -> Drop | None:
        """See :class:`~stepwell.schedulers.admission.Admission`."""
        self._model.toll.calls_came(now)
        if request.prompt_due_s == math.inf and request.slo.tpot_s == math.inf:
            self.count(request)
            return None
        clock_s, now = now, now + self._answer_s
        book = self._opened(request)
        start_s = max(now, self._free_s(book)) if self._members else now
        overrun_s, entry = book.overrun_s(request, start_s, clock_s)
        if overrun_s <= 0.0:
            self._members.append(request)
            book.add(entry)
            return None
        prices = self._price_lists.of(self._model, [request])
        alone_s = overrun_alone_s(request, now, prices, book.spread, self._limits)
        if alone_s > 0.0:
            if (
                self._doubts(now)
                and overrun_alone_s(request, now, prices, book.spread.over(DOUBT), self._limits) <= 0.0
            ):
                self.count(request)
                return None
            return Drop(request, DropReason.HOPELESS, None, alone_s)
        # Before a step has begun its plan may still drop others.
        return Drop(request, DropReason.HOPELESS, overrun_s, 0.0 if self._step is None else overrun_s)

    def count(self, request: Request) -> None:
        """See :class:`~stepwell.schedulers.admission.Admission`."""
        self._members.append(request)
        if self._book is not None:
            self._book.add(self._book.entry(request))

    def _doubts(self, now: float) -> bool:
        """Whether the machine may have become faster since anything ran."""
        return not self._members and now - self._made_s >= STALE_S

    def _free_s(self, book: Book) -> float:
        """When the step that runs will have ended, by its 90th percentile."""
        if self._step is None or self._step.predicted_s is None:
            return self._made_s + book.step_s
        return self._made_s + self._step.predicted_s * book.unsteadiness

    def _opened(self, request: Request) -> Book:
        if self._book is None:
            slices = self._step.slices if self._step else ()
            ahead = [s for s, n in zip(slices, self._computed, strict=True) if s.request.computed_tokens == n]
            self._book = Book(self._members, request, self._made_s, self._model, self._limits, self._price_lists, ahead)
        return self._book
