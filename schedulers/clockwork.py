"""Clockwork (OSDI '20): full quality only, and nothing is begun that is not predicted to be in time.

Carried over from one-shot requests to generation: a request's runtime is that of its prompt beside those who decode
now, and of its tokens at the pace of a step with one more of them. It is dropped, before it starts, once its due time
is nearer than its own runtime; it is begun only if the step with one more would still keep everybody's time per token;
and prompts get what the step has left until the next token is due.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.deadline_order import by_urgency, merged
from stepwell.schedulers.plan import Capacity, Drop, DropReason, Slice, StepPlan, as_slice
from stepwell.schedulers.priced import Priced
from stepwell.schedulers.prices import LevelCosts
from stepwell.schedulers.request import Phase, Request
from stepwell.schedulers.room import Room

MIN_CHUNK = 16
"""Tokens of a prompt that a step computes in any case."""


class Clockwork(Priced):
    """See the module. Without a cost model nothing is predicted: the same as ``max_quality``."""

    name = "clockwork"

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
        clock = _Clock(now, running, self.price_lists.of(model, [*running, *waiting]), model)
        lost = {r: None for r in waiting if not r.has_started and clock.is_late(r)}
        waiting = [r for r in waiting if r not in lost] if lost else waiting
        drops += [Drop(r, DropReason.HOPELESS) for r in lost]
        slices = self._slices(clock, waiting, running, Room(capacity, running, self.limits))
        return StepPlan(slices, drops, *model.foresee(slices))

    def _slices(self, clock: _Clock, waiting: Sequence[Request], running: Sequence[Request], room: Room) -> list[Slice]:
        slices = [as_slice((r, 1, self.point_of(r))) for r in clock.decoding[: self.limits.max_step_tokens]]
        tokens, left_s = self.limits.max_step_tokens - len(slices), clock.time_for_prompts_s()
        ahead_s = 0.0
        prompts = sorted((r for r in running if r.pending_tokens > 1), key=by_urgency)
        for request in merged(prompts, self.line.of(waiting), room):
            fitting = max(left_s / clock.row_s(request), 0 if slices else MIN_CHUNK)
            num_tokens = request.whole_units(int(min(request.pending_tokens, tokens, fitting)))
            if not num_tokens and not slices:
                num_tokens = request.unit_tokens
            if num_tokens < min(MIN_CHUNK, request.pending_tokens, self.limits.max_step_tokens):
                break
            if request.phase is not Phase.RUNNING:
                if not (request.has_started or clock.has_time_for(request, ahead_s)) or not room.admit(
                    request, self.point_of(request)
                ):
                    continue
                clock.join(request)
            ahead_s += request.pending_tokens * clock.row_s(request)
            slices.append(as_slice((request, num_tokens, self.point_of(request))))
            tokens -= num_tokens
            left_s -= num_tokens * clock.row_s(request)
        return sorted(slices, key=lambda slice_: slice_.request.urgency_s)


class _Clock:
    """Predictions at full quality."""

    def __init__(self, now: float, running: Sequence[Request], prices: LevelCosts, model: StepCostModel) -> None:
        self._now, self._prices = now, prices
        self._slowness = model.correction.upper("mixed")
        self._fixed_s: dict[int, float] = {}
        self.decoding = sorted((r for r in running if r.pending_tokens == 1), key=by_urgency)
        self._num_running = len(running)
        self._keys = sum(r.known_tokens for r in running)
        self._tightest_tpot_s = min((r.slo.tpot_s for r in running), default=math.inf)
        self._alone_s = self.step_s(1, 0)

    def row_s(self, request: Request) -> float:
        """A row of its prompt."""
        seen = request.reach_tokens or request.prompt_tokens
        return (self._prices.row[-1] + seen * self._prices.pair[-1]) * self._slowness

    def step_s(self, num_sequences: int, keys: int) -> float:
        """A step in which so many sequences decode."""
        prices = self._prices
        if num_sequences not in self._fixed_s:
            self._fixed_s[num_sequences] = float(prices.fixed_s(num_sequences)[-1])
        raw_s = self._fixed_s[num_sequences] + num_sequences * prices.decode[-1] + keys * prices.key[-1]
        return raw_s * self._slowness

    def time_for_prompts_s(self) -> float:
        """What is left of this step until the next token of a decoding sequence is due; inf without any."""
        if not self.decoding:
            return math.inf
        due_s = min([r.next_due_s for r in self.decoding if r.next_due_s > self._now], default=math.inf)
        return due_s - self._now - self.step_s(len(self.decoding), self._keys)

    def is_late(self, request: Request) -> bool:
        """It cannot be in time even if it starts now."""
        first_s = self._now + request.prompt_tokens * self.row_s(request) + self._alone_s
        if first_s > request.first_due_s or request.deadline_s == math.inf:
            return first_s > request.first_due_s
        token_s = self.step_s(len(self.decoding) + 1, self._keys + request.prompt_tokens)
        return first_s + (request.max_tokens - 1) * token_s > request.deadline_s

    def has_time_for(self, request: Request, ahead_s: float) -> bool:
        """Started now, after ``ahead_s`` of other prompts, it is in time, and so are everybody's next tokens."""
        own_s = request.pending_tokens * self.row_s(request)
        step_s = self.step_s(self._num_running + 1, self._keys + request.known_tokens)
        tightest_s = min(self._tightest_tpot_s, request.slo.tpot_s)
        if self._num_running and step_s > tightest_s:
            return False
        share = 1.0 - self.step_s(len(self.decoding), self._keys) / tightest_s if self.decoding else 1.0
        return self._now + (ahead_s + own_s) / max(share, 0.1) + step_s <= request.first_due_s

    def join(self, request: Request) -> None:
        """``request`` runs from now on."""
        self._num_running += 1
        self._keys += request.known_tokens
        self._tightest_tpot_s = min(self._tightest_tpot_s, request.slo.tpot_s)
