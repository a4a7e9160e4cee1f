"""Steps that need no deciding: everybody decodes at the best level, and it is known that there is time for that.

Where the demand bound holds at the best level with time to spare, it goes on holding for a while, whatever the steps
turn out to take: with each token the work that is due by any time gets less, and the time until then only gets less by
what has passed. So it is worked out once until when the bound holds on the safe side: with keys of some steps ahead, a
machine somewhat slower, and the dearest fixed part. Until then, and as long as nobody comes, the plan is what deciding
it would give; whoever leaves only makes it safer. In doubt the answer is None: decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.demand import Demand
from stepwell.schedulers.fill import GUARD, longest_s
from stepwell.schedulers.outlook import LATE_S, Outlook
from stepwell.schedulers.pace import RESERVE_S, Bill
from stepwell.schedulers.plan import StepPlan, newest_tokens
from stepwell.schedulers.prices import LevelCosts
from stepwell.schedulers.request import Request
from stepwell.schedulers.work import END_S, OFFSET, PERIOD_S, Array

STEPS = 64
"""Tokens that everybody may generate until the bound is worked out anew."""
SLOWER = 1.1
"""By how much the machine may become slower until then."""
ROUNDING = 1e-6
"""Seconds, and shares of seconds, that are worth deciding."""


class Calm(NamedTuple):
    """What was worked out."""

    model: StepCostModel
    prices: LevelCosts
    requests: list[Request]
    """Those that run."""
    generated: list[int]
    """Tokens that they had generated."""
    offset: Array
    """Their rows' ``OFFSET``, as if nothing were generated yet."""
    period_s: Array
    until_s: float
    """The bound holds until then."""
    expires_s: float
    """Before this nobody is dropped."""
    share: float
    """Of the time until something is due; at least."""
    slowness: float
    """Actual over predicted seconds; at most."""
    step_s: float
    """What a step of all of them takes at most, without correction."""

    @classmethod
    def of(
        cls, outlook: Outlook, charged: Bill, prices: LevelCosts, model: StepCostModel, share: float, slowness: float
    ) -> Calm | None:
        """Of a step in which everybody decodes and nobody waits; None if that cannot be said of the steps to come."""
        requests, work = outlook.requests, outlook.work
        if outlook.num_running < len(requests) or outlook.has_prompts or charged.levels is not None or outlook.roll.odd:
            return None
        ladder = prices.points[0].ladder
        if _raisable(requests, prices) or [r for r in requests if r.points[-1].ladder != ladder]:
            return None
        slowness *= SLOWER
        token_s = charged.token_s[-1] + prices.key[prices.rungs[-1]] * STEPS
        fixed_s = prices.dearest_fixed_s(len(requests))
        ends_s = work[:, END_S]
        demand = Demand(work, ends_s[ends_s < math.inf])
        need_s = demand.seconds(token_s[None, :], None)[:, 0] + demand.num_steps() * fixed_s
        until_s = np.min(demand.times - need_s * (slowness / share), initial=math.inf) - RESERVE_S / share - ROUNDING
        generated = [r.generated_tokens for r in requests]
        return cls(
            model=model,
            prices=prices,
            requests=requests,
            generated=generated,
            offset=work[:, OFFSET] + generated,
            period_s=work[:, PERIOD_S],
            until_s=float(until_s),
            expires_s=min([r.hard_deadline_s for r in requests]),
            share=share,
            slowness=slowness,
            step_s=(float(token_s.sum()) + fixed_s) * (1.0 + ROUNDING),
        )

    def among(self, running: Sequence[Request]) -> Calm | None:
        """The same of those that are left; None if somebody else is there."""
        if running == self.requests:
            return self
        at = {request: i for i, request in enumerate(self.requests)}
        rows = [i for request in running if (i := at.get(request)) is not None]
        if not running or len(rows) < len(running):
            return None
        return self._replace(
            requests=list(running),
            generated=[self.generated[i] for i in rows],
            offset=self.offset[rows],
            period_s=self.period_s[rows],
        )

    def plan(self, now: float, share: float, max_tokens: int) -> StepPlan | None:
        """Everybody at the best level, most urgent first; None if that has to be decided.

        ``share``: as it is now; ``max_tokens``: of a step.
        """
        generated = self._advanced()
        correction, requests = self.model.correction, self.requests
        slowness = correction.overall.mean
        holds = now <= self.until_s and slowness <= self.slowness and share >= self.share
        if generated is None or not holds or len(requests) > max_tokens:
            return None
        due_s = (1.0 - (self.offset - generated)) * self.period_s - now
        dues: list[float] = due_s.tolist()
        worst_slowness = max(correction.next_upper("decode"), correction.next_upper("mixed"))
        limit_s = min([due for due in dues if due > LATE_S], default=math.inf) * GUARD / worst_slowness
        limit_s = min(limit_s, longest_s(self.prices, len(requests), slowness))
        if self.step_s > limit_s or math.inf in dues:
            return None
        in_order = [requests[i] for i in due_s.argsort(kind="stable").tolist()]
        point = self.prices.points[self.prices.rungs[-1]]
        slices = newest_tokens(in_order, repeat(point))
        predicted_s, learn = self.model.foresee(slices)
        return StepPlan(slices, (), predicted_s, learn) if predicted_s <= limit_s * slowness else None

    def _advanced(self) -> list[int] | None:
        """Tokens that each has generated; None if somebody does not decode, might be raised, or is beyond what was
        worked out."""
        requests = self.requests
        if [r for r in requests if r.known_tokens - r.computed_tokens != 1]:
            return None
        if _raisable(requests, self.prices):
            return None
        generated = [r.generated_tokens for r in requests]
        more = [n - before for n, before in zip(generated, self.generated, strict=True)]
        return generated if min(more) >= 0 and max(more) <= STEPS else None


def _raisable(requests: Sequence[Request], prices: LevelCosts) -> list[Request]:
    """Those with tokens that left the network below the best rung."""
    above, top = prices.rungs_above, len(prices.rungs) - 1
    return [r for r in requests if r.exit_tokens and min([above[p.level] for p in r.exit_tokens]) < top]
