"""What a product over some FFN channels costs on this machine, measured, to decide where splitting it pays.

A split saves the arithmetic that narrow rows do not need, and costs calls and smaller products. While reading weights
dominates (few rows), extra rows are nearly free and one wide product wins; with many rows the exact staircase does.
The result is the same to rounding either way.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.staircase import Span

MEASURED_ROWS = (1, 8, 32, 128, 256)
_LAYERS = 4
"""Layers measured in turn, so that weights come from memory as they do in a step."""
_REPEATS = 5


class SlicedFFN(Protocol):
    """A feed-forward network that runs slices of its channels."""

    @property
    def input_weight(self) -> Tensor:
        """A weight [channels, D] that takes its input."""

    def run_span(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> Tensor: ...


@dataclass(frozen=True)
class MeasuredCost:
    """Seconds of the FFN products of one layer, linear in channels at each measured number of rows."""

    rows: tuple[int, ...]
    """Ascending."""
    fixed_s: tuple[float, ...]
    """At each of ``rows``: seconds whatever the channels."""
    channel_s: tuple[float, ...]
    """At each of ``rows``: seconds per channel."""

    @classmethod
    @torch.inference_mode()
    def measure(cls, layers: Sequence[SlicedFFN], linear: SliceLinear, widths: tuple[int, int]) -> MeasuredCost:
        """Time ``layers`` at two widths and several numbers of rows; the fastest of a few runs counts."""
        narrow, wide = widths
        fixed, slope = [], []
        for rows in MEASURED_ROWS:
            low, high = (_seconds(layers[:_LAYERS], linear, rows, width) for width in widths)
            slope.append(max(high - low, 0.0) / (wide - narrow))
            fixed.append(max(low - slope[-1] * narrow, 0.0))
        return cls(MEASURED_ROWS, tuple(fixed), tuple(slope))

    def seconds(self, num_rows: int, num_channels: int) -> float:
        """Predicted seconds; between measured rows interpolated, beyond them extrapolated."""
        right = min(max(bisect_left(self.rows, num_rows), 1), len(self.rows) - 1)
        left = right - 1
        share = (num_rows - self.rows[left]) / (self.rows[right] - self.rows[left])
        fixed = self.fixed_s[left] + share * (self.fixed_s[right] - self.fixed_s[left])
        slope = self.channel_s[left] + share * (self.channel_s[right] - self.channel_s[left])
        return max(fixed, 0.0) + max(slope, 0.0) * num_channels

    def prefers_wide(self, narrow_units: int, narrow_rows: int, extra_units: int, extra_rows: int) -> bool:
        """See :data:`~stepwell.models.layers.staircase.WideRule`."""
        split = self.seconds(narrow_rows, narrow_units) + self.seconds(extra_rows, extra_units)
        return self.seconds(narrow_rows, narrow_units + extra_units) <= split


def _seconds(layers: Sequence[SlicedFFN], linear: SliceLinear, rows: int, width: int) -> float:
    """Seconds per layer."""
    weight = layers[0].input_weight
    x, span = torch.ones(rows, weight.shape[1], dtype=weight.dtype), Span(0, width, rows)
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for layer in layers:
            layer.run_span(x, span, linear)
        best = min(best, time.perf_counter() - start)
    return best / len(layers)
