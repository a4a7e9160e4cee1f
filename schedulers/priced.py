"""What all policies share that decide by predicted seconds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.max_quality import MaxQuality
from stepwell.schedulers.plan import Capacity, CostModel, Drop, Limits, StepPlan
from stepwell.schedulers.prices import PriceLists
from stepwell.schedulers.request import Request


class Priced(MaxQuality):
    """Without a cost model everybody runs at the best point allowed, in order of deadline."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.price_lists = PriceLists()

    def plan(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        capacity: Capacity,
        cost_model: CostModel | None,
    ) -> StepPlan:
        if not isinstance(cost_model, StepCostModel):
            return super().plan(now, waiting, running, capacity, cost_model)
        drops, waiting, running = self.expiry.drop(now, waiting, running)
        if not waiting and not running:
            return StepPlan((), drops)
        return self.decide(now, waiting, running, capacity, cost_model, drops)

    @abstractmethod
    def decide(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        capacity: Capacity,
        model: StepCostModel,
        drops: list[Drop],
    ) -> StepPlan:
        """The plan for those who have not expired, one at least; ``drops``: those who have, which are part of it."""
