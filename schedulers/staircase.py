"""Ours: every request at the level that its slack and everybody's can afford, in mixed batches, step by step.

1. What has expired, or could no longer be in time even alone at its smallest point, is dropped.
2. The demand bound over all that waits and runs says which level is affordable (:mod:`~stepwell.schedulers.pace`): a
   standing queue, a burst or a near deadline lowers it, and so does a full house
   (:mod:`~stepwell.schedulers.turnover`).
3. That budget is dealt out where a second buys most quality.
4. The step is filled in order of due times (:mod:`~stepwell.schedulers.fill`) and ends before the next token is due.

Levels are decided anew in every step: a request that may switch climbs when there is time and goes down when there is
none. Newcomers are refused by the same bound at the smallest points (:mod:`~stepwell.schedulers.promises`). Without a
cost model everybody runs at the best point allowed, and nobody is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stepwell.schedulers.admission import Admission
from stepwell.schedulers.calm import Calm
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.fill import RAISE_FACTOR, STEP_S, StepFill, longest_s
from stepwell.schedulers.lineup import Lineup
from stepwell.schedulers.outlook import Outlook
from stepwell.schedulers.pace import (
    BUSY,
    BUSY_SHARE,
    CALM_SHARE,
    CROWDED_SHARE,
    CROWDING,
    affordable,
    assign,
    bill,
)
from stepwell.schedulers.plan import Capacity, CostModel, Drop, DropReason, Limits, StepPlan
from stepwell.schedulers.priced import Priced
from stepwell.schedulers.prices import LevelCosts, PriceLists
from stepwell.schedulers.promises import Promises
from stepwell.schedulers.request import Request
from stepwell.schedulers.roll import Ledger
from stepwell.schedulers.room import Room

CALM_STEPS = 4
"""How many steps there must be time for until it is worth working out whether they need any deciding."""
TOLERANCE = 1.1
"""By how much a step's exact prediction may exceed its estimate before the step is filled anew."""


class Staircase(Priced):
    """See the module."""

    name = "staircase"

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._ledger = Ledger()
        self._calm: Calm | None = None

    def plan(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        capacity: Capacity,
        cost_model: CostModel | None,
    ) -> StepPlan:
        calm, self._calm = self._calm, None
        if calm is not None and not waiting and cost_model is calm.model and now < calm.expires_s:
            share, max_tokens = _share(len(running), self.limits, calm.prices), self.limits.max_step_tokens
            calm = calm.among(running)
            if (
                calm is not None
                and (plan := calm.plan(now + calm.model.answer_way.seconds, share, max_tokens)) is not None
            ):
                self._calm = calm
                return plan
        return super().plan(now, waiting, running, capacity, cost_model)

    def decide(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        capacity: Capacity,
        model: StepCostModel,
        drops: list[Drop],
    ) -> StepPlan:
        """See :class:`~stepwell.schedulers.priced.Priced`."""
        clock_s, now = now, now + model.answer_way.seconds  # of what is made in this step
        line: Sequence[Request] = self.line.of(waiting)
        situation = self._situation(clock_s, now, line, running, model)
        if lost := situation.hopeless():
            drops += lost
            gone = {drop.request for drop in lost}
            line = [r for r in line if r not in gone]
            if not line and not running:
                return StepPlan((), drops)
            situation = self._situation(clock_s, now, line, running, model)
        plan = situation.step(capacity, drops)
        self._calm = situation.calm(plan)
        return plan

    def _situation(
        self, clock_s: float, now: float, line: Sequence[Request], running: Sequence[Request], model: StepCostModel
    ) -> _Situation:
        outlook = Outlook(now, line, running, self.limits.max_running, self._ledger)
        return _Situation(clock_s, outlook, line, model, self.price_lists, self.limits)

    def admission(
        self,
        now: float,
        waiting: Sequence[Request],
        running: Sequence[Request],
        cost_model: CostModel | None,
        step: StepPlan | None = None,
    ) -> Admission | None:
        """The demand bound at the smallest points."""
        if not isinstance(cost_model, StepCostModel):
            return None
        return Promises(now, waiting, running, cost_model, self.limits, self.price_lists, step)


class _Situation:
    """What one step is decided from, and the decision."""

    def __init__(
        self,
        clock_s: float,
        outlook: Outlook,
        line: Sequence[Request],
        model: StepCostModel,
        price_lists: PriceLists,
        limits: Limits,
    ) -> None:
        """``clock_s``: when the step begins, that is before the outlook's now."""
        self._clock_s, self._outlook, self.line, self._model, self._limits = clock_s, outlook, line, model, limits
        correction = model.correction
        self._slowness = correction.overall.mean
        self._worst_slowness = max(correction.next_upper("decode"), correction.next_upper("mixed"))
        self._prices = price_lists.of(model, outlook.requests)
        prices = self._prices
        spans = [(i, *prices.span(outlook.requests[i])) for i in outlook.roll.limited(len(prices.points))]
        num_decoding, self._longest = len(outlook.decoding.indices), outlook.longest if prices.padded else 0
        self._bill = bill(prices, outlook.work, spans, num_decoding, self._longest, limits, outlook.has_prompts)

    def hopeless(self) -> list[Drop]:
        """Drops of those that have never started and cannot be in time any more, even alone and at their smallest
        points. When they came they might have been: it is the backlog's fault, and trying again may help."""
        outlook, charged, slowness = self._outlook, self._bill, self._slowness
        if charged.prompt_s is None or not self.line or len(outlook.requests) == 1:  # alone it takes nobody's time
            return []
        now, waiting, fixed_s = outlook.now, slice(outlook.num_running, outlook.num_exact), charged.fixed_s.item(0)
        prompts_s, tokens_s = charged.prompt_s[0, waiting].tolist(), charged.token_s[0, waiting].tolist()
        late = []
        all_of = zip(self.line, prompts_s, tokens_s, *outlook.roll.waiting_work, strict=False)
        for request, prompt_s, token_s, prompt_due_s, tokens, end_s in all_of:
            begin_s = now + (prompt_s + fixed_s) * slowness
            if begin_s > prompt_due_s or begin_s + tokens * (token_s + fixed_s) * slowness > end_s:
                late.append(request)
        return [Drop(r, DropReason.HOPELESS, STEP_S) for r in late if not r.has_started]

    def step(self, capacity: Capacity, drops: Sequence[Drop]) -> StepPlan:
        """What runs, and how long that takes."""
        outlook, max_tokens = self._outlook, self._limits.max_step_tokens
        running = outlook.requests[: outlook.num_running]
        room = Room(capacity, running, self._limits)
        decoding, prompts = outlook.decoding, outlook.prompts(room.seats, max_tokens)
        share = _share(outlook.num_running + len(self.line), self._limits, self._prices)
        lost_each_s = partial(self._model.toll.lost_each_s, self._clock_s)
        pace = affordable(outlook.work, outlook.weights, self._bill, outlook.now, self._slowness, share, lost_each_s)
        self._spare_s = pace.spare_s * self._slowness / share
        num_seen = max(outlook.num_running, 1 + max(prompts.indices, default=-1))
        step_s = longest_s(self._prices, len(decoding.indices), self._slowness)
        raise_s = step_s if prompts.indices else step_s * RAISE_FACTOR
        seen = outlook.requests[:num_seen]
        assigned = assign(seen, outlook, self._bill, self._prices, pace, raise_s)
        lineups = Lineup.of(decoding, seen, assigned), Lineup.of(prompts, seen, assigned)
        fill = self._filled(*lineups, room, step_s, 1.0)
        slices = fill.slices
        predicted_s, learn = self._model.foresee(slices, self._clock_s)
        own_s = predicted_s - self._model.foreseen_lost_s
        optimism = own_s / (fill.seconds * self._slowness)
        if optimism > TOLERANCE and own_s > fill.limit_s * self._slowness and len(slices) > 1:
            slices = self._filled(*lineups, Room(capacity, running, self._limits), step_s, optimism).slices
            predicted_s, learn = self._model.foresee(slices, self._clock_s)
        return StepPlan(slices, drops, predicted_s, learn)

    def calm(self, plan: StepPlan) -> Calm | None:
        """What the steps after ``plan`` need not decide; None if it is not worth working out."""
        outlook = self._outlook
        if self.line or outlook.has_prompts or self._spare_s < CALM_STEPS * (plan.predicted_s or 0.0):
            return None
        share = _share(outlook.num_running, self._limits, self._prices)
        return Calm.of(outlook, self._bill, self._prices, self._model, share, self._slowness)

    def _filled(self, decoding: Lineup, prompts: Lineup, room: Room, step_s: float, optimism: float) -> StepFill:
        """``optimism``: by how much the exact prediction exceeds the estimates that the step is filled by."""
        points = self._prices.points if self._bill.levels is None else None
        worst = self._worst_slowness * optimism
        fill = StepFill(self._prices, points, self._limits, room, decoding.num, self._longest, step_s / optimism, worst)
        next_due_s = self._outlook.next_due_s
        fill.run(decoding, prompts, next_due_s - self._model.toll.lost_s(self._clock_s, self._clock_s + next_due_s))
        return fill


def _share(num_here: int, limits: Limits, prices: LevelCosts) -> float:
    """Of the time until something is due, what is given away now that so many requests are here."""
    fullness = num_here / limits.max_running
    busyness, crowding = min(fullness / BUSY, 1.0), min(max(fullness - CROWDING, 0.0), 1.0)
    share = CALM_SHARE + (BUSY_SHARE - CALM_SHARE) * busyness + (CROWDED_SHARE - BUSY_SHARE) * crowding
    return share * prices.stake
