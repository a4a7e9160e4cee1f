"""What the operating points of a model that answers as a whole cost on this machine, measured on batches of items.

Each point of the default ladder is timed on growing batches, all in turn, so that a machine's drift hits them alike. As
seconds over tokens these are curves; the difference between a point's and the next lower one's is what the units (or
the tokens) that join there cost, which is how :mod:`stepwell.schedulers.cost_model` predicts a batch that mixes points.
Batches of all points say what mixing itself costs: items of each run in calls of their own. Points of other ladders,
which a request gets only by name, are taken to cost what their share of the full model's parameters and tokens says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from stepwell.models.ladder import Ladder, LadderSet
from stepwell.models.one_shot import Item, OneShotModel
from stepwell.models.profiler import Progress, no_progress
from stepwell.schedulers.correction import OnlineCorrection
from stepwell.schedulers.cost_model import Curve, LadderCosts, StepCostModel
from stepwell.schedulers.plan import Slice
from stepwell.schedulers.request import SLO, OperatingPoint, Request

MAX_BATCH_S = 0.4
"""Batches grow until one of the full model takes so long, or the step has no room for more."""
NUM_TRIALS = 5
"""Of each batch; the median counts."""
BUDGET_S = 12.0
"""For all of it, about: then there are fewer trials, but one."""

MIXES = (1, 2, 4)
"""Items of each point in the batches that mix all of them."""
RAGGED = 8
"""Texts of the batch of different lengths."""
MOST_TEXT_TOKENS = 512
"""Of the long one."""

Array: TypeAlias = npt.NDArray[np.float64]
MakeItem = Callable[[str, int], Item]
"""An item to be run at the point of that name; a text of so many tokens, 0 = a typical item."""


@dataclass(frozen=True)
class PointCurves:
    """Seconds of batches at one point each."""

    num_tokens: tuple[int, ...]
    """Of the batches, to the unreduced model; ascending."""
    seconds: Mapping[str, tuple[float, ...]]
    """Operating point -> of each batch."""
    shares: Mapping[str, float]
    """Operating point -> its ``cost``, for all points of all ladders."""
    mixed: Mapping[str, float] = field(default_factory=dict)
    """Number of items of each point -> seconds of a batch with so many items of each of them, all as large as the
    smallest batch's."""
    pair_s: Mapping[str, float] = field(default_factory=dict)
    """Operating point -> seconds per pair of tokens of a text, over all layers; nothing for images, which are alike."""
    call_s: Mapping[str, float] = field(default_factory=dict)
    """Operating point -> seconds per text whose length no other has: attention is a call for each length."""

    def cost_model(self, ladders: LadderSet) -> StepCostModel:
        """A predictor of the model's steps that has observed none yet."""
        default = ladders.ladders[ladders.default]
        top_name = default.point_name(len(default.levels) - 1)
        top = self.seconds[top_name]
        overhead_s = max(0.0, min(self._start_s(seconds) for seconds in self.seconds.values()))
        costs = {}
        for name, ladder in ladders.ladders.items():
            names = tuple(ladder.point_name(k) for k in range(len(ladder.levels)))
            measured = [self.seconds.get(n) or _scaled(top, overhead_s, self.shares[n]) for n in names]
            costs[name] = self._ladder_costs(
                names,
                measured,
                overhead_s,
                self._of(self.pair_s, names, top_name),
                self._of(self.call_s, names, top_name),
            )
        unmixed = StepCostModel(overhead_s, (0.0, 0.0), costs, OnlineCorrection())
        return StepCostModel(
            overhead_s, (0.0, 0.0), costs, OnlineCorrection(), mixing_s=self._mixing_s(unmixed, default)
        )

    def _mixing_s(self, unmixed: StepCostModel, ladder: Ladder) -> float:
        """Per point beyond the first: what batches of all points took longer than predicted without it."""
        names = [ladder.point_name(k) for k in range(len(ladder.levels))]
        if len(names) < 2 or not self.mixed:
            return 0.0
        points = [OperatingPoint(self.shares[name], 1.0, ladder.name, k) for k, name in enumerate(names)]
        extra = [
            seconds - unmixed.raw_s([self._item(point) for point in points] * int(count))
            for count, seconds in self.mixed.items()
        ]
        return max(0.0, statistics.median(extra)) / (len(names) - 1)

    def _item(self, point: OperatingPoint) -> Slice:
        tokens = self.num_tokens[0]
        return Slice(Request("", 0.0, SLO(), (point,), tokens, 1, unit_tokens=tokens), tokens, point)

    def typical_s(self, name: str, num_tokens: int) -> float:
        """Seconds of a batch of typical items at a measured point, of so many tokens; between batches and beyond the
        largest on straight lines."""
        at, seconds = self.num_tokens, self.seconds[name]
        if num_tokens <= at[-1]:
            return float(np.interp(num_tokens, at, seconds))
        slope = (seconds[-1] - self._start_s(seconds)) / at[-1]
        return seconds[-1] + slope * (num_tokens - at[-1])

    def _start_s(self, seconds: Sequence[float]) -> float:
        """What a batch of nothing would take."""
        if len(seconds) == 1:
            return 0.1 * seconds[0]
        slope = (seconds[1] - seconds[0]) / (self.num_tokens[1] - self.num_tokens[0])
        return seconds[0] - slope * self.num_tokens[0]

    def _ladder_costs(
        self,
        names: tuple[str, ...],
        measured: Sequence[Sequence[float]],
        overhead_s: float,
        pair_s: Curve,
        call_s: Curve,
    ) -> LadderCosts:
        at = np.arange(self.num_tokens[-1] + 1)
        typical = np.outer(pair_s, np.array(self.num_tokens) * self.num_tokens[0]) + np.array(call_s)[:, None]
        own = np.maximum(np.array(measured) - overhead_s - typical, 0.0)
        own = ascending(ascending(own.T).T)  # more tokens, and larger points, never cost less
        own = np.maximum.accumulate(own, axis=1)
        below, split = np.zeros(len(at)), []
        for seconds in own:
            total = np.interp(at, [0, *self.num_tokens], [0.0, *seconds])
            split.append(_curve(total - below))
            below = total
        zeros = (0.0,) * len(names)
        return LadderCosts(names, tuple(split), (None,) * len(names), zeros, zeros, pair_s, call_s)

    def _of(self, costs: Mapping[str, float], names: Sequence[str], top: str) -> Curve:
        """Of these points, smallest first; of those that were not measured, their share of the full model's."""
        found = [costs.get(name, self.shares[name] * costs.get(top, 0.0)) for name in names]
        return tuple(_pooled(found))


def ascending(rows: Array) -> Array:
    """The closest rows (least squares) whose values do not descend: neighbours that do are replaced by their mean.
    Float64 [rows, values]."""
    return np.array([_pooled(row) for row in rows.tolist()])


def _pooled(values: Sequence[float]) -> list[float]:
    """Pool adjacent violators (Ayer et al. 1955)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, num_before = pools.pop()
            mean, count = (before * num_before + mean * count) / (num_before + count), num_before + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _scaled(top: Sequence[float], overhead_s: float, cost: float) -> tuple[float, ...]:
    return tuple(overhead_s + (seconds - overhead_s) * cost for seconds in top)


def _curve(values: Array) -> Curve:
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
    longest_text: int = 0,
    progress: Progress = no_progress,
) -> PointCurves:
    """Time all points of ``ladder``, largest first.

    Args:
        shares: see :class:`PointCurves`.
        make_item: items to run.
        outputs: what is computed of them.
        item_tokens: tokens of each, to the unreduced model.
        max_tokens: of a step.
        longest_text: tokens that the model takes; 0 = it takes images.
    """
    names = [ladder.point_name(k) for k in range(len(ladder.levels))][::-1]
    items = {name: make_item(name, 0) for name in names}
    sizes = _sizes(model, [items[names[0]]], outputs, max_tokens // item_tokens)
    batches = {(name, n): [items[name]] * n for name in names for n in sizes}
    mixes = {str(n): [*items.values()] * n for n in MIXES if n * len(names) <= sizes[-1]}
    texts = _Texts.of(item_tokens, min(longest_text, max_tokens)) if longest_text else None
    lengths = texts.batches if texts else {}
    odd = {(name, kind): [make_item(name, n) for n in lengths[kind]] for name in names for kind in lengths}
    timed = _timed(model, [*batches.values(), *mixes.values(), *odd.values()], outputs, progress)
    medians = dict(zip([*batches, *mixes, *odd], timed, strict=True))
    curves = PointCurves(
        num_tokens=tuple(n * item_tokens for n in sizes),
        seconds={name: tuple(medians[name, n] for n in sizes) for name in names},
        shares=dict(shares),
        mixed={count: medians[count] for count in mixes},
    )
    if texts is None:
        return curves
    found = {name: texts.costs(curves, name, medians[name, "long"], medians[name, "ragged"]) for name in names}
    return replace(
        curves,
        pair_s={name: pair_s for name, (pair_s, _) in found.items()},
        call_s={name: call_s for name, (_, call_s) in found.items()},
    )


@dataclass(frozen=True)
class _Texts:
    """Batches of texts that are not typical: a long one, and several of different lengths."""

    typical: int
    long: int
    ragged: tuple[int, ...]

    @classmethod
    def of(cls, typical: int, longest: int) -> _Texts:
        lengths = {max(1, typical * k // RAGGED) for k in range(1, RAGGED + 1)}
        return cls(typical, min(longest, MOST_TEXT_TOKENS), tuple(sorted(lengths)))

    @property
    def batches(self) -> dict[str, tuple[int, ...]]:
        """Lengths of each."""
        return {"long": (self.long,), "ragged": self.ragged}

    def costs(self, curves: PointCurves, name: str, long_s: float, ragged_s: float) -> tuple[float, float]:
        """Seconds per pair and per text, from what the two batches took beyond typical texts of as many tokens."""
        extra_pairs = self.long * (self.long - self.typical)
        pair_s = max(0.0, long_s - curves.typical_s(name, self.long)) / extra_pairs if extra_pairs > 0 else 0.0
        tokens = sum(self.ragged)
        pairs = sum(n * n for n in self.ragged) - self.typical * tokens
        left_s = ragged_s - curves.typical_s(name, tokens) - pair_s * pairs
        return pair_s, max(0.0, left_s) / max(1, len(self.ragged) - 1)


def _timed(
    model: OneShotModel, batches: Sequence[list[Item]], outputs: Sequence[str], progress: Progress
) -> list[float]:
    """Medians of each."""
    until_s = time.monotonic() + BUDGET_S
    trials: list[list[float]] = [[] for _ in batches]
    for batch in batches:
        model.run(batch, outputs)  # weight slices are packed on first use
    for number in range(NUM_TRIALS):
        for i, batch in enumerate(batches):
            if number == 0 or time.monotonic() < until_s:
                progress(number * len(batches) + i, NUM_TRIALS * len(batches))
                trials[i].append(_time(model, batch, outputs))
    return [statistics.median(seconds) for seconds in trials]


def _sizes(model: OneShotModel, item: list[Item], outputs: Sequence[str], most: int) -> list[int]:
    """1, 2, 4, ... and at last as many as a step has room for, if that does not take too long."""
    sizes, size = [1], 2
    model.run(item, outputs)
    while size < most and _time(model, item * sizes[-1], outputs) < MAX_BATCH_S / 2:
        sizes.append(size)
        size *= 2
    return sizes


def _time(model: OneShotModel, items: list[Item], outputs: Sequence[str]) -> float:
    start = time.perf_counter()
    model.run(items, outputs)
    return time.perf_counter() - start
