"""What the operating points of a model that answers as a whole cost on this machine, measured on batches of items.

Each point of the default ladder is timed on growing batches. As seconds over tokens these are curves; the difference
between a point's and the next lower one's is what the units (or the tokens) that join there cost, which is how
:mod:`stepwell.schedulers.cost_model` predicts a batch that mixes points. Points of other ladders, which a request gets
only by name, are taken to cost what their share of the full model's parameters and tokens says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.models.ladder import Ladder, LadderSet
from stepwell.models.one_shot import Item, OneShotModel
from stepwell.models.profiler import Progress, no_progress
from stepwell.schedulers.correction import OnlineCorrection
from stepwell.schedulers.cost_model import Curve, LadderCosts, StepCostModel

MAX_BATCH_S = 0.4
"""Batches grow until one of the full model takes so long, or the step has no room for more."""
NUM_TRIALS = 3
BUDGET_S = 25.0
"""For all of it, about: later points get fewer trials."""

MakeItem = Callable[[str], Item]
"""An item to be run at the point of that name."""


@dataclass(frozen=True)
class PointCurves:
    """Seconds of batches at one point each."""

    num_tokens: tuple[int, ...]
    """Of the batches, to the unreduced model; ascending."""
    seconds: Mapping[str, tuple[float, ...]]
    """Operating point -> of each batch."""
    shares: Mapping[str, float]
    """Operating point -> its ``cost``, for all points of all ladders."""

    def cost_model(self, ladders: LadderSet) -> StepCostModel:
        """A predictor of the model's steps that has observed none yet."""
        default = ladders.ladders[ladders.default]
        top = self.seconds[default.point_name(len(default.levels) - 1)]
        overhead_s = max(0.0, min(self._start_s(seconds) for seconds in self.seconds.values()))
        costs = {}
        for name, ladder in ladders.ladders.items():
            names = tuple(ladder.point_name(k) for k in range(len(ladder.levels)))
            measured = [self.seconds.get(n) or _scaled(top, overhead_s, self.shares[n]) for n in names]
            costs[name] = self._ladder_costs(names, measured, overhead_s)
        return StepCostModel(overhead_s, (0.0, 0.0), costs, OnlineCorrection())

    def _start_s(self, seconds: Sequence[float]) -> float:
        """What a batch of nothing would take."""
        if len(seconds) == 1:
            return 0.1 * seconds[0]
        slope = (seconds[1] - seconds[0]) / (self.num_tokens[1] - self.num_tokens[0])
        return seconds[0] - slope * self.num_tokens[0]

    def _ladder_costs(
        self, names: tuple[str, ...], measured: Sequence[Sequence[float]], overhead_s: float
    ) -> LadderCosts:
        at = np.arange(self.num_tokens[-1] + 1)
        below, split = np.zeros(len(at)), []
        for seconds in measured:
            own = np.interp(at, [0, *self.num_tokens], [0.0, *(max(s - overhead_s, 0.0) for s in seconds)])
            total = np.maximum(np.maximum.accumulate(own), below)
            split.append(_curve(total - below))
            below = total
        zeros = (0.0,) * len(names)
        return LadderCosts(names, tuple(split), (None,) * len(names), zeros, zeros, zeros)


def _scaled(top: Sequence[float], overhead_s: float, cost: float) -> tuple[float, ...]:
    return tuple(overhead_s + (seconds - overhead_s) * cost for seconds in top)


def _curve(values: np.ndarray) -> Curve:
    curve: list[float] = values.tolist()
    return tuple(curve)


def measure_points(
    model: OneShotModel,
    ladder: Ladder,
    shares: Mapping[str, float],
    make_item: MakeItem,
    outputs: Sequence[str],
    item_tokens: int,
    max_tokens: int,
    progress: Progress = no_progress,
) -> PointCurves:
    """Time all points of ``ladder``, largest first.

    Args:
        shares: see :class:`PointCurves`.
        make_item: items to run.
        outputs: what is computed of them.
        item_tokens: tokens of each, to the unreduced model.
        max_tokens: of a step.
    """
    names = [ladder.point_name(k) for k in range(len(ladder.levels))][::-1]
    sizes = _sizes(model, [make_item(names[0])], outputs, max_tokens // item_tokens)
    until_s = time.monotonic() + BUDGET_S
    seconds = {}
    for done, name in enumerate(names):
        progress(done, len(names))
        item = make_item(name)
        model.run([item] * sizes[-1], outputs)  # weight slices are packed on first use
        late = time.monotonic() > until_s
        seconds[name] = tuple(_time(model, [item] * n, outputs, 1 if late else NUM_TRIALS) for n in sizes)
    return PointCurves(tuple(n * item_tokens for n in sizes), seconds, dict(shares))


def _sizes(model: OneShotModel, item: list[Item], outputs: Sequence[str], most: int) -> list[int]:
    """1, 2, 4, ... and at last as many as a step has room for, if that does not take too long."""
    sizes, size = [1], 2
    model.run(item, outputs)
    while size < most and _time(model, item * sizes[-1], outputs, 1) < MAX_BATCH_S / 2:
        sizes.append(size)
        size *= 2
    return sizes


def _time(model: OneShotModel, items: list[Item], outputs: Sequence[str], num_trials: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        model.run(items, outputs)
        return time.perf_counter() - start

    return statistics.median(once() for _ in range(num_trials))
