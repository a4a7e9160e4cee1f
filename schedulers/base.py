"""The one interface of scheduling policies: a pure function of (now, state, cost model)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from stepwell.schedulers.admission import Admission
from stepwell.schedulers.plan import Capacity, CostModel, Limits, StepPlan
from stepwell.schedulers.request import Request


class Policy(ABC):
    """Decides one step. Holds configuration only; all state comes in as arguments."""

    name: str

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    @abstractmethod
    def plan(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        capacity: Capacity,
        cost_model: CostModel | None,
    ) -> StepPlan:
        """Decide the next step.

        ``waiting`` is in order of arrival; ``running`` holds cache pages. Both are read, never changed.
        """

    def admission(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        cost_model: CostModel | None,
        step: StepPlan | None = None,
    ) -> Admission | None:
        """What decides on submissions until it is made anew; None (the default) accepts everything.

        ``step``: what begins now, for requests in ``running``; None between two steps.
        """
        return None
