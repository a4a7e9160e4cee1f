"""The cost model of one ladder condensed to a few prices a level, for estimates over many requests and steps.

Within one step the tables of :class:`~stepwell.schedulers.cost_model.LadderCosts` are exact; here a step is a straight
line: a fixed part, and a price for each row, each decoding sequence, each key it reads, each prompt and its pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stepwell.schedulers.cost_model import LadderCosts, StepCostModel, at
from stepwell.schedulers.request import OperatingPoint, Request
from stepwell.schedulers.work import Array

FEW_ROWS, MANY_ROWS = 32, 256
"""A row's price is taken between these numbers of rows."""
MUCH_GAIN, LEAST_GAIN = 0.3, 1e-3
"""Quality between the lowest and the best level, relative to the best, from which on all time is given away that the
planner ever gives away; and what counts as least."""
CAUTION = 0.25
"""The power of the gain by which it is less where there is less to be won. What is put off for quality comes too late
if many arrive, so a little more time is worth giving away as long as it gains more than it risks: with diminishing
returns, and a risk that grows as the fourth power of the time given away, up to about this."""
FURTHER_POINTS = 2
"""Operating points beyond the first that a step is taken to mix."""


class Prices(NamedTuple):
    """One number a level, or a level of each request."""

    token_s: Array
    """A generated token, without the keys it reads."""
    key_s: Array
    """Each of these."""
    row_s: Array
    """A row of a prompt."""
    pair_s: Array
    """A pair of its attention."""
    prompt_s: Array
    """A prompt, besides."""


class LevelCosts:
    """Prices of one ladder, an entry a level, smallest first; seconds, without online correction.

    Args:
        model: the cost model.
        costs: the ladder's part of it.
        points: the ladder's operating points, one a level.
    """

    def __init__(self, model: StepCostModel, costs: LadderCosts, points: Sequence[OperatingPoint]) -> None:
        self.points = tuple(points)
        self.quality: Array = np.array([point.quality for point in points])
        batch_s: Array = np.array([_at_all_levels(costs, n) for n in range(MANY_ROWS + 1)]) + model.overhead_s
        self.row_s: Array = (batch_s[MANY_ROWS] - batch_s[FEW_ROWS]) / (MANY_ROWS - FEW_ROWS)
        """A row more in a step of many."""
        output_s = at(model.output_s, 16) - at(model.output_s, 15)
        sequence_s = np.array(costs.sequence_s)
        self.decode_s: Array = self.row_s + sequence_s + output_s
        """A decoding sequence more, without the keys it reads."""
        self.prompt_s: Array = sequence_s + output_s + (np.array(costs.call_s) if costs.call_s else 0.0)
        """A prompt more, without its rows and pairs."""
        self.key_s: Array = np.array(costs.key_s)
        self.pair_s: Array = np.array(costs.pair_s)
        self.row: list[float] = self.row_s.tolist()
        """The same as ``row_s``, for single look-ups; and so on."""
        self.decode: list[float] = self.decode_s.tolist()
        self.prompt: list[float] = self.prompt_s.tolist()
        self.key: list[float] = self.key_s.tolist()
        self.pair: list[float] = self.pair_s.tolist()
        once_s: Array = at(model.output_s, 1) - output_s + np.array(costs.shared_s or 0.0)
        once_s = once_s + FURTHER_POINTS * model.mixing_s
        rows = np.arange(MANY_ROWS + 1)[:, None]
        self._fixed_s: Array = np.maximum(batch_s - rows * self.row_s, 0.0) + once_s
        self._fixed: list[list[float]] = self._fixed_s.tolist()
        self.padded = model.shared_context > 0
        """Whether decoding sequences cost as many keys as the longest of them."""
        self.columns = Prices(self.decode_s, self.key_s, self.row_s, self.pair_s, self.prompt_s)
        self.rungs = _concave(self.row_s, self.quality)
        """The levels worth using, ascending: each is worth its seconds more than those left out around it."""
        self.rungs_at = np.array(self.rungs)
        self._fixed_at_rungs_s: Array = self._fixed_s[:, self.rungs_at]
        self.climb_s: tuple[Array, Array] = np.diff(self.row_s[self.rungs_at]), np.diff(self.pair_s[self.rungs_at])
        """A row, and a pair, more from each rung to the next."""
        self.rungs_above = [max(sum(rung <= k for rung in self.rungs) - 1, 0) for k in range(len(points))]
        """For each level, the rung from which climbing leads above it."""
        self.at_rungs = Prices(*(column[self.rungs_at, None] for column in self.columns))
        """The same prices at the rungs only, as columns: [rungs, 1]."""
        self.gain: Array = np.diff(self.quality[self.rungs_at])[:, None]
        """Quality from each rung to the next: [rungs - 1, 1]."""
        gain = 1.0 - float(self.quality[self.rungs[0]] / self.quality[self.rungs[-1]])
        self.stake: float = min(max(gain, LEAST_GAIN) / MUCH_GAIN, 1.0) ** CAUTION
        """Share of the time to give away that quality is worth; 1 = all."""
        self._rung_row_s: dict[tuple[int, int], Array] = {}
        self._at_first_rungs: dict[int, Prices] = {}

    def fixed_s(self, num_sequences: int) -> Array:
        """What a step costs in which so many sequences decode, beyond the price of its rows and sequences."""
        fixed: Array = self._fixed_s[min(max(num_sequences, 1), MANY_ROWS)]
        return fixed

    def fixed(self, num_sequences: int) -> list[float]:
        """The same, for single look-ups. Not to be changed."""
        return self._fixed[min(max(num_sequences, 1), MANY_ROWS)]

    def fixed_at_rungs_s(self, num_sequences: int) -> Array:
        """The same at the rungs only."""
        fixed: Array = self._fixed_at_rungs_s[min(max(num_sequences, 1), MANY_ROWS)]
        return fixed

    def dearest_fixed_s(self, num_sequences: int) -> float:
        """The most that a step costs in which up to so many sequences decode at the best rung, beyond the price of its
        rows and sequences."""
        fixed_s = self._fixed_s[1 : min(num_sequences, MANY_ROWS) + 1]
        return float(fixed_s[:, [0, self.rungs[-1]]].max())

    def rung_row_s(self, num_sequences: int, max_step_tokens: int) -> Array:
        """[rungs, 1]: a row of a prompt at a rung, with its share of a full step's fixed part."""
        key = min(max(num_sequences, 1), MANY_ROWS), max_step_tokens
        if (row_s := self._rung_row_s.get(key)) is None:
            row_s = self.at_rungs.row_s + self._fixed_at_rungs_s[key[0]][:, None] / max_step_tokens
            self._rung_row_s[key] = row_s
        return row_s

    def at_first_rungs(self, num_rungs: int) -> Prices:
        """``at_rungs`` of the lowest so many."""
        if (prices := self._at_first_rungs.get(num_rungs)) is None:
            prices = self._at_first_rungs[num_rungs] = Prices(*[column[:num_rungs] for column in self.at_rungs])
        return prices

    def span(self, request: Request) -> tuple[int, int]:
        """The lowest and highest level that ``request`` may run at; if those are on another ladder, what costs as
        much on this one."""
        low, high = request.points[0], request.points[-1]
        if request.point is not None and not request.may_switch:
            low = high = request.point
        return self._level_like(low), self._level_like(high)

    def _level_like(self, point: OperatingPoint) -> int:
        if point.ladder == self.points[0].ladder:
            return point.level
        return next((k for k, mine in enumerate(self.points) if mine.cost >= point.cost), len(self.points) - 1)


class PriceLists:
    """:class:`LevelCosts` by cost model and ladder, made once. Holds no state of requests."""

    def __init__(self) -> None:
        self._model: StepCostModel | None = None
        self._lists: dict[str, LevelCosts] = {}

    def of(self, model: StepCostModel, requests: Sequence[Request]) -> LevelCosts:
        """The prices of the ladder on which most is to be decided: that of the first request with a choice of points.

        ``requests``: one at least. Levels that nobody allows have the quality and the point of the level above.
        """
        if model is not self._model:
            self._model, self._lists = model, {}
        ladder = requests[0].points[-1].ladder
        for request in requests:
            if len(request.points) > 1:
                ladder = request.points[-1].ladder
                break
        if (known := self._lists.get(ladder)) is not None:
            return known
        points = {point.level: point for r in requests for point in r.points if point.ladder == ladder}
        prices = LevelCosts(model, model.ladders[ladder], _filled(points, len(model.ladders[ladder].split)))
        if len(points) == len(prices.points):
            self._lists[ladder] = prices
        return prices


def point_at(request: Request, level: int) -> OperatingPoint:
    """The highest point that ``request`` allows up to ``level``, or its lowest; its own if it may not switch."""
    points = request.points
    if request.point is not None and not request.may_switch:
        return request.point
    index = level - points[0].level
    if 0 <= index < len(points) and points[index].level == level:
        return points[index]
    return next((point for point in reversed(points) if point.level <= level), points[0])


def _filled(points: Mapping[int, OperatingPoint], num_levels: int) -> list[OperatingPoint]:
    found = [points.get(level) for level in range(num_levels)]
    nearest = points[max(points)]
    for level in reversed(range(num_levels)):
        nearest = found[level] or nearest
        found[level] = nearest
    return [point for point in found if point is not None]


def _at_all_levels(costs: LadderCosts, rows: int) -> Array:
    """Seconds of the units of each level and those below it, all run by ``rows`` tokens."""
    pairs = zip(costs.split, costs.wide, strict=True)
    joined = [at(split, rows) if wide is None else min(at(split, rows), at(wide, rows)) for split, wide in pairs]
    return np.cumsum(joined)


def _concave(seconds: Array, quality: Array) -> tuple[int, ...]:
    """Indices of the upper concave hull of quality over seconds, from the cheapest level to the best."""
    hull: list[int] = []
    for k in range(len(seconds)):
        if hull and quality[k] <= quality[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(seconds, quality, hull[-2], hull[-1]) <= _slope(seconds, quality, hull[-1], k):
            hull.pop()
        hull.append(k)
    return tuple(hull)


def _slope(seconds: Array, quality: Array, low: int, high: int) -> float:
    return float((quality[high] - quality[low]) / max(seconds[high] - seconds[low], 1e-12))
