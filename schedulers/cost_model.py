"""What a step costs, predicted from who runs how many tokens at which level.

A ladder's levels are a staircase: level k adds units to level k - 1. With ``rows[k]`` = tokens of the step whose level
is at least k, the units joining at level k run on exactly ``rows[k]`` tokens, so the step costs

    overhead + sum over k of curve_k(rows[k]) + attention of each sequence + head(sequences that sample)

with each curve measured on the machine (roofline shape: flat while reading weights dominates, then linear). The tables
hold a value for every number of tokens, so that a planner reads marginal costs with two look-ups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

from stepwell.schedulers.answer_way import AnswerWay
from stepwell.schedulers.correction import OnlineCorrection
from stepwell.schedulers.plan import Slice
from stepwell.schedulers.request import OperatingPoint, Request
from stepwell.schedulers.toll import Toll

Kind: TypeAlias = Literal["decode", "mixed"]
"""Steps are corrected apart: those in which every sequence advances by its newest token, and all others."""

Curve = tuple[float, ...]
"""Seconds for n = 0, 1, 2, ... tokens; ``curve[0] == 0``. See :func:`at` beyond its end."""


def at(curve: Curve, num_tokens: int) -> float:
    """The curve's value, extrapolated by its last slope beyond its end."""
    last = len(curve) - 1
    if num_tokens <= last:
        return curve[num_tokens]
    return curve[last] + (num_tokens - last) * (curve[last] - curve[last // 2]) / (last - last // 2)


@dataclass(frozen=True)
class LadderCosts:
    """Costs of one ladder, in seconds, as measured (without online correction). One entry a level, smallest first."""

    points: tuple[str, ...]
    """Names of the operating points."""
    split: tuple[Curve, ...]
    """The units that join at a level, run by so many tokens on their own."""
    wide: tuple[Curve | None, ...]
    """The same units run along with the level below (one wider product), by all tokens of the level below; None where
    they cannot. The cost of level k is ``min(split[k][rows[k]], wide[k][rows[k - 1]])``, and 0 if ``rows[k] == 0``."""
    sequence_s: Curve
    """Per sequence at the level, whatever it runs: its share of attention calls."""
    key_s: Curve
    """Per key that a decoding token at the level reads, over all layers of the level."""
    pair_s: Curve
    """Per (query, key) pair of a prefill chunk at the level, over all its layers. See :func:`chunk_pairs`."""
    call_s: Curve = ()
    """Per sequence at the level whose attention is a call of its own in each layer: prefill chunks, and decoding over
    ``shared_context`` keys or more. Empty = 0."""
    shared_s: Curve = ()
    """Of the padded call that the other decoding sequences share in each layer, once for all of them. Empty = 0."""


def chunk_pairs(start: int, num_tokens: int) -> int:
    """Query-key pairs of a prefill chunk at position ``start``: attention computes the whole rectangle, masked."""
    return num_tokens * (start + num_tokens)


def step_kind(slices: Sequence[Slice]) -> Kind:
    """``decode`` if every slice is the newest token of a request that has generated before."""
    for request, num_tokens, _ in reversed(slices):  # prompts are rarely the most urgent
        if num_tokens != 1 or request.generated_tokens == 0:
            return "mixed"
    return "decode"


class StepCostModel:
    """Predicts steps. Pure given its tables and its correction; ``observe`` teaches the correction.

    Args:
        overhead_s: of a step, whatever it runs.
        output_s: head and sampling, by the number of sequences that sample.
        ladders: costs of each ladder by name. Sequences on different ladders are predicted as staircases of their own.
        correction: the running ratio of actual to predicted durations.
        shared_context: decoding sequences of fewer keys share one attention call, padded to the longest of them: each
            costs as many keys as that one. 0 = none do.
        mixing_s: per operating point that occurs in the step, beyond the first.
    """

    def __init__(
        self,
        overhead_s: float,
        output_s: Curve,
        ladders: Mapping[str, LadderCosts],
        correction: OnlineCorrection,
        shared_context: int = 0,
        mixing_s: float = 0.0,
    ) -> None:
        self.overhead_s, self.output_s, self.ladders, self.correction = overhead_s, output_s, ladders, correction
        self.shared_context, self.mixing_s = shared_context, mixing_s
        self.answer_way = AnswerWay()
        """What comes after the step."""
        self.toll = Toll()
        """What comes in the middle of it."""
        self._foreseen: tuple[Sequence[Slice], float] = (), 0.0
        """The step that was foreseen last, and its ``raw_s``."""
        self.foreseen_lost_s = 0.0
        """Part of that step's predicted duration that calls are expected to take."""
        self._alike: dict[tuple[str, int, int], float] = {}
        """Seconds of the units of a step whose tokens all run at one level, by ladder, level and tokens."""

    @classmethod
    def linear(
        cls, points: Sequence[OperatingPoint], full_row_s: float, overhead_s: float, max_rows: int = 512
    ) -> StepCostModel:
        """A model by rule of thumb: a token costs ``full_row_s`` times its point's ``cost``, whatever else runs.

        The safe default where nothing was measured: without the discount that many tokens at once get, it errs on the
        slow side, and the online correction scales it to the machine. Attention is taken as part of the token.

        Args:
            points: all operating points; levels of a ladder in any order, none left out.
            full_row_s: seconds of a token at the full model.
            overhead_s: seconds of a step, whatever it runs.
            max_rows: length of the tables.
        """
        ladders = {}
        for name in {point.ladder: None for point in points}:
            levels = sorted((p for p in points if p.ladder == name), key=lambda p: p.level)
            costs = [0.0, *(point.cost * full_row_s for point in levels)]
            zeros = (0.0,) * len(levels)
            ladders[name] = LadderCosts(
                points=tuple(point.name for point in levels),
                split=tuple(
                    tuple(n * (after - before) for n in range(max_rows + 1)) for before, after in pairwise(costs)
                ),
                wide=(None,) * len(levels),
                sequence_s=zeros,
                key_s=zeros,
                pair_s=zeros,
            )
        return cls(overhead_s, (0.0, 0.0), ladders, OnlineCorrection())

    def of_another_engine(self) -> StepCostModel:
        """The same costs, with a correction of their own."""
        correction = OnlineCorrection()
        return StepCostModel(
            self.overhead_s, self.output_s, self.ladders, correction, self.shared_context, self.mixing_s
        )

    def predict_s(self, slices: Sequence[Slice]) -> float:
        """Median of the duration of a step that runs ``slices``, corrected by what was observed lately."""
        return self.raw_s(slices) * self.correction.next_median(step_kind(slices))

    def promise_s(self, slices: Sequence[Slice]) -> float:
        """The 90th percentile of the same: what promises are made from."""
        return self.raw_s(slices) * self.correction.next_upper(step_kind(slices))

    def raw_s(self, slices: Sequence[Slice]) -> float:
        """As measured by the profiler, without correction."""
        tallies: dict[str, _Tally] = {}
        last, level = None, 0
        num_outputs = 0
        for request, num_tokens, point in slices:
            if point is not last:
                last, level, name = point, point.level, point.ladder
                tally = tallies.get(name) or tallies.setdefault(name, _Tally(self.ladders[name]))
                ends, rows, calls, pairs = tally.ends[level], tally.rows, tally.calls, tally.pairs
            end = request.computed_tokens + num_tokens
            if end >= request.known_tokens:
                num_outputs += 1
            if level and request.exit_tokens:
                tally.add_backfill(request, num_tokens, point)
            if num_tokens == 1:
                ends.append(end)
            else:
                rows[level] += num_tokens
                calls[level] += 1
                pairs[level] += num_tokens * (request.reach_tokens or end)  # as in chunk_pairs
        seconds = self.overhead_s + at(self.output_s, num_outputs)
        num_points = 0
        for name, tally in tallies.items():
            tally.add_ends(self.shared_context)
            num_own = len(tally.rows) - tally.rows.count(0)
            num_points += num_own
            units_s = self._alike_s(name, tally) if num_own == 1 and not tally.backfills else tally.units_s()
            seconds += tally.attention_s() + units_s
        return seconds + self.mixing_s * max(num_points - 1, 0)

    def _alike_s(self, name: str, tally: _Tally) -> float:
        """Of the units that a tally of one level and no backfill runs."""
        num_tokens = max(tally.rows)
        key = name, tally.rows.index(num_tokens), num_tokens
        if (seconds := self._alike.get(key)) is None:
            seconds = self._alike[key] = tally.units_s()
        return seconds

    def expect(self, slices: Sequence[Slice]) -> Callable[[float], None]:
        """What to call with the seconds that a step of ``slices`` took, later: it teaches the correction."""
        return self.foresee(slices)[1]

    def foresee(self, slices: Sequence[Slice], now: float | None = None) -> tuple[float, Callable[[float], None]]:
        """``predict_s`` and ``expect`` at once. ``now``: when the step begins, and the calls that come in it count."""
        kind, raw_s = step_kind(slices), self.raw_s(slices)
        self._foreseen = slices, raw_s
        usual_s = raw_s * self.correction.next_median(kind)
        self.foreseen_lost_s = lost_s = 0.0 if now is None else self.toll.lost_s(now, now + usual_s)
        if now is None:
            return usual_s, partial(self.correction.observe, kind, raw_s)
        return usual_s + lost_s, partial(self._learn, kind, raw_s, raw_s * self.correction.mean(kind), now, lost_s)

    def _learn(
        self, kind: str, raw_s: float, usual_s: float, begin_s: float, foreseen_s: float, actual_s: float
    ) -> None:
        lost_s = self.toll.learn(begin_s, usual_s, actual_s) if 0.0 < actual_s < math.inf else 0.0
        self.correction.observe(kind, raw_s, actual_s, lost_s, foreseen_s)

    def foreseen_s(self, slices: Sequence[Slice]) -> float:
        """``raw_s`` of what is about to run: known if it was foreseen last, as no request has moved on since."""
        foreseen, raw_s = self._foreseen
        return raw_s if slices == foreseen else self.raw_s(slices)


class _Tally:
    """What the sequences of one ladder run in one step, by level."""

    def __init__(self, costs: LadderCosts) -> None:
        num_levels = len(costs.split)
        self.costs = costs
        self.ends: list[list[int]] = [[] for _ in range(num_levels)]
        """Keys that each of the sequences reads that decode; what follows counts them once they are added."""
        self.rows = [0] * num_levels
        """Tokens that leave at the level."""
        self.backfill = [0] * (num_levels + 1)
        """Kept tokens that run the units joining at the level and at those above it besides; less those that stop
        below it."""
        self.backfills = False
        """Whether there are any."""
        self.shared = [0] * num_levels
        """Sequences in the shared call."""
        self.longest = [0] * num_levels
        """Keys of the longest of them."""
        self.calls = [0] * num_levels
        """Sequences whose attention is a call of its own."""
        self.keys = [0] * num_levels
        """Keys that those of them read that decode."""
        self.pairs: list[float] = [0] * num_levels
        """Pairs of the others; of backfilled tokens, those beyond what the level they left at has had."""

    def add_backfill(self, request: Request, num_tokens: int, point: OperatingPoint) -> None:
        """Tokens that left the network at shallower levels run through the units up to this one."""
        high, context = point.level, request.computed_tokens + num_tokens
        for left_at, num_kept in request.exit_tokens.items():
            low = left_at.level
            if low < high and left_at.ladder == point.ladder:
                self.backfills = True
                self.backfill[low + 1] += num_kept
                self.backfill[high + 1] -= num_kept
                self.pairs[high] += num_kept * context
                self.pairs[low] -= num_kept * context

    def add_ends(self, shared_context: int) -> None:
        """Count the sequences that decode."""
        for level, ends in enumerate(self.ends):
            if not ends:
                continue
            self.rows[level] += len(ends)
            shared = [end for end in ends if end < shared_context] if shared_context else []
            if shared:
                self.shared[level], self.longest[level] = len(shared), max(shared)
            self.calls[level] += len(ends) - len(shared)
            self.keys[level] = sum(ends) - sum(shared)

    @property
    def num_used(self) -> int:
        """Levels up to the highest at which anything runs."""
        rows, num = self.rows, len(self.rows)
        while num and not rows[num - 1]:
            num -= 1
        return num

    def attention_s(self) -> float:
        """Of all of it; the units and what a step costs once come on top."""
        costs = self.costs
        key_s, sequence_s, call_s = costs.key_s, costs.sequence_s, costs.call_s
        total, num_shared, max_keys = 0.0, 0, 0
        for level in range(self.num_used - 1, -1, -1):
            if self.pairs[level]:
                total += self.pairs[level] * costs.pair_s[level]
            if calls := self.calls[level]:
                total += (
                    calls * (sequence_s[level] + (call_s[level] if call_s else 0.0)) + self.keys[level] * key_s[level]
                )
            if shared := self.shared[level]:
                if not num_shared and costs.shared_s:
                    total += costs.shared_s[level]
                num_shared += shared
                total += shared * sequence_s[level]
                max_keys = max(max_keys, self.longest[level])
            if num_shared:
                below_s = key_s[level - 1] if level else 0.0
                total += num_shared * max_keys * (key_s[level] - below_s)
        return total

    def units_s(self) -> float:
        """Of the units that it runs."""
        total, above, backfill, below = 0.0, sum(self.rows), 0, 0
        num_used, costs = self.num_used, self.costs
        levels = zip(costs.split[:num_used], costs.wide, self.rows, self.backfill, strict=False)
        for split, wide, leaving, joining in levels:
            backfill += joining
            here = above + backfill
            if here:
                cost = split[here] if here < len(split) else at(split, here)
                if wide is not None:
                    cost = min(cost, at(wide, max(below, here)))
                total += cost
            below = here
            above -= leaving
        return total
