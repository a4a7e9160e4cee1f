"""SuperServe's SlackFit (NSDI '25): the tightest deadline chooses one sub-network and batch size for the whole step.

Pairs (level, batch size) are sorted into latency buckets of equal width. The slack of the earliest deadline picks the
highest bucket that is not above it; in the bucket, the pair with the largest batch, then the best level.

Carried over from one-shot queries to generation: the queue holds one unit of work for each request, its next token or
the next chunk of its prompt, in order of due times; a batch of B is the first B units; a prompt that takes several
steps has its slack divided among them. The latency of a pair is predicted for the very units in the queue rather than
for units of average size. Everybody who may switch, or starts, runs at the level chosen. Kept exit states that would
have to be backfilled hold a sequence where it is (SuperServe's models keep no state), so they do not spoil the slack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.deadline_order import by_urgency
from stepwell.schedulers.plan import Capacity, Drop, Slice, StepPlan, as_slice
from stepwell.schedulers.priced import Priced
from stepwell.schedulers.prices import LevelCosts, point_at
from stepwell.schedulers.request import OperatingPoint, Phase, Request
from stepwell.schedulers.room import Room
from stepwell.schedulers.work import Array

NUM_BUCKETS = 64
"""Latency buckets between the smallest pair and the largest."""


class SlackFit(Priced):
    """See the module. Without a cost model, everybody runs at the best point allowed."""

    name = "slack_fit"

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
        room = Room(capacity, running, self.limits)
        queue = sorted(chain(running, self.line.of(waiting)[: room.seats]), key=by_urgency)
        slices = self._batch(now, queue, room, model)
        if running and not slices:  # the most urgent wait for pages: those that hold them go on
            slices = self._batch(now, sorted(running, key=by_urgency), room, model)
        return StepPlan(slices, drops, *model.foresee(slices)) if slices else StepPlan((), drops)

    def _batch(self, now: float, queue: Sequence[Request], room: Room, model: StepCostModel) -> list[Slice]:
        """``queue``: most urgent first."""
        if not queue:
            return []
        prices = self.price_lists.of(model, queue)
        latencies = self._latencies(queue, prices) * model.correction.upper("mixed")
        batch, level = fit(latencies, slack_s(queue[0], now, self.limits.max_step_tokens))
        return self._slices(queue[:batch], level, room)

    def _latencies(self, queue: Sequence[Request], prices: LevelCosts) -> Array:
        """[units, levels]: seconds of a step of the first so many units, all at one level."""
        rows = np.array([min(r.pending_tokens, self.limits.max_step_tokens) for r in queue], np.float64)[:, None]
        keys = np.array([r.reach_tokens or r.known_tokens for r in queue], np.float64)[:, None]
        decode_s = prices.decode_s + keys * prices.key_s
        prompt_s = prices.prompt_s + rows * (prices.row_s + keys * prices.pair_s)
        units_s = np.where(rows > 1.0, prompt_s, decode_s)
        within = np.cumsum(rows, axis=0) <= max(self.limits.max_step_tokens, rows[0, 0])
        num_units = int(within.sum())
        seconds: Array = prices.fixed_s(num_units) + np.cumsum(units_s[:num_units], axis=0)
        return seconds

    def _slices(self, units: Sequence[Request], level: int, room: Room) -> list[Slice]:
        slices: list[Slice] = []
        tokens = self.limits.max_step_tokens
        for request in units:
            point, num_tokens = _point(request, level), request.whole_units(min(request.pending_tokens, tokens))
            if num_tokens and (request.phase is Phase.RUNNING or (room.seats and room.admit(request, point))):
                slices.append(as_slice((request, num_tokens, point)))
                tokens -= num_tokens
        return slices


def slack_s(request: Request, now: float, max_step_tokens: int) -> float:
    """Time until its unit of work is due; of a prompt that takes several steps, the share of one."""
    return (request.next_due_s - now) / math.ceil(request.pending_tokens / max_step_tokens)


def fit(latencies: Array, slack_s: float) -> tuple[int, int]:
    """(batch size, level) from ``latencies`` [batch sizes - 1, levels]. Batch sizes are powers of two, and all."""
    sizes = sorted({*(1 << k for k in range(len(latencies).bit_length())), len(latencies)})
    pairs = latencies[np.array(sizes) - 1]
    width = (pairs.max() - pairs.min()) / NUM_BUCKETS or 1.0
    buckets = np.floor((pairs - pairs.min()) / width)
    buckets[pairs > slack_s] = -1.0
    best = max(float(buckets.max()), 0.0)
    inside = (buckets == best) if buckets.max() >= 0 else (pairs - pairs.min() < width)
    size = int(np.flatnonzero(inside.any(1))[-1])
    return sizes[size], int(np.flatnonzero(inside[size])[-1])


def _point(request: Request, level: int) -> OperatingPoint:
    point = point_at(request, level)
    if request.point is not None and point.level > request.point.level and request.exit_tokens:
        return request.point
    return point
