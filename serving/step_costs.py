"""From the measured units of a model to the tables that predict its steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwell.models.ladder import Ladder, LadderSet, SubNetwork
from stepwell.models.unit_profile import AttendCosts, UnitProfile, table
from stepwell.schedulers.correction import OnlineCorrection
from stepwell.schedulers.cost_model import Curve, LadderCosts, StepCostModel

TABLE_ROWS = 513
"""Entries of a curve's table; beyond, its slope holds."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepResidual:
    """What whole steps took beyond the sum of their units."""

    scale: float = 1.0
    """Of the units: in a step, caches are colder than in a measurement, or warmer."""
    overhead_s: float = 0.0
    """Of any step."""
    sequence_s: float = 0.0
    """Per sequence."""
    row_s: float = 0.0
    """Per token."""
    mixing_s: float = 0.0
    """Per operating point in the step beyond the first."""


def cost_model(
    profile: UnitProfile, residual: StepResidual, ladders: LadderSet, correction: OnlineCorrection | None = None
) -> StepCostModel:
    """The predictor of a model's steps, not yet corrected by any unless a ``correction`` is handed on."""
    tables = _Tables(profile, residual)
    return StepCostModel(
        overhead_s=residual.overhead_s,
        output_s=tables.curve(np.array(profile.output_s)),
        ladders={name: _ladder_costs(ladder, tables) for name, ladder in ladders.ladders.items()},
        correction=correction or OnlineCorrection(),
        shared_context=profile.shared_context,
        mixing_s=residual.mixing_s,
    )


def _ladder_costs(ladder: Ladder, tables: _Tables) -> LadderCosts:
    subnets = [level.subnet for level in ladder.levels]
    nothing = SubNetwork((0,) * len(subnets[0].kv_groups), (0,) * len(subnets[0].ffn_channels))
    pairs = list(zip([nothing, *subnets], subnets, strict=False))
    attended = [tables.attended(subnet) for subnet in subnets]
    return LadderCosts(
        points=tuple(f"{ladder.name}:{level}" for level in range(len(subnets))),
        split=tuple(tables.split(below, subnet) for below, subnet in pairs),
        wide=tuple(tables.wide(below, subnet) for below, subnet in pairs),
        sequence_s=tuple(tables.residual.sequence_s + _beyond_row_s(each) for each in attended),
        key_s=_rising([each.key_s for each in attended]),
        pair_s=_rising([each.pair_s for each in attended]),
        call_s=tuple(max(each.call_s - _beyond_row_s(each), 0.0) for each in attended),
        shared_s=tuple(each.shared_s for each in attended),
    )


def _beyond_row_s(attended: AttendCosts) -> float:
    """Of a sequence in the shared call, without what its row pays like all rows."""
    return max(attended.sequence_s - attended.row_s, 0.0)


def _rising(prices: list[float]) -> Curve:
    """A larger level is never cheaper, whatever noise says."""
    return tuple(float(price) for price in np.maximum.accumulate(prices))


class _Tables:
    """Sums of units."""

    def __init__(self, profile: UnitProfile, residual: StepResidual) -> None:
        self.residual, self._profile = residual, profile
        self._rows = np.array(profile.rows, dtype=np.float64)
        self._norm = np.array(profile.norm_s)

    def curve(self, seconds: Floats, row_s: float = 0.0) -> Curve:
        """The table of a curve given at the measured numbers of rows."""
        scaled = self.residual.scale * np.maximum(seconds, 0.0)
        return tuple(table(self._profile.rows, (scaled + row_s * self._rows).tolist(), TABLE_ROWS))

    def attended(self, subnet: SubNetwork) -> AttendCosts:
        """Prices of attention over all layers of ``subnet``."""
        costs = [self._profile.attend[groups] for groups in subnet.kv_groups if groups]

        def total(field: str) -> float:
            return self.residual.scale * float(sum(getattr(each, field) for each in costs))

        return AttendCosts(**{field: total(field) for field in AttendCosts.__dataclass_fields__})

    def split(self, below: SubNetwork, subnet: SubNetwork) -> Curve:
        """The units of ``subnet`` that are not in ``below``, in products of their own. The first level, which all rows
        of a step run, bears what a row costs besides."""
        seconds = self._attention(below, subnet) + self._ffn(below, subnet, along=False)
        return self.curve(seconds, 0.0 if below.num_units else self.residual.row_s)

    def wide(self, below: SubNetwork, subnet: SubNetwork) -> Curve | None:
        """The same where FFN channels run in one product with those of ``below``; None if nowhere."""
        if not any(0 < b < a for b, a in zip(below.ffn_channels, subnet.ffn_channels, strict=True)):
            return None
        return self.curve(self._attention(below, subnet) + self._ffn(below, subnet, along=True))

    def _attention(self, below: SubNetwork, subnet: SubNetwork) -> Floats:
        total, profile = np.zeros(len(self._rows)), self._profile
        for (before, after), layers in Counter(zip(below.kv_groups, subnet.kv_groups, strict=True)).items():
            if groups := after - before:
                seconds = np.array(profile.attention_s[groups]) + self._rows * profile.attend[groups].row_s
                total += layers * (seconds - (self._norm if before else 0.0))
        return total

    def _ffn(self, below: SubNetwork, subnet: SubNetwork, along: bool) -> Floats:
        total, ffn_s = np.zeros(len(self._rows)), self._profile.ffn_s
        for (before, after), layers in Counter(zip(below.ffn_channels, subnet.ffn_channels, strict=True)).items():
            if before and along and after > before:
                total += layers * (np.array(ffn_s[after]) - np.array(ffn_s[before]))
            elif after > before:
                total += layers * (np.array(ffn_s[after - before]) - (self._norm if before else 0.0))
        return total
