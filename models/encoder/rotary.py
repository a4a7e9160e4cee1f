"""Rotary attention, of all tokens or of those near by (ModernBERT: Warner et al. 2024, arXiv 2412.13663, section 2.1).

Local attention of a text runs in chunks of queries, each with the keys that any of its queries sees.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.encoder.attention import PackedAttention
from stepwell.models.encoder.batch import TextBatch
from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.positions import PlainRotary, RotaryLayer
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.rotary import RotaryTable, rotate
from stepwell.models.layers.staircase import Span

_LEAST_CHUNK = 64


class LocalAttention(PackedAttention):
    """Every token sees the tokens of its text that are at most ``window`` away."""

    def __init__(self, batch: TextBatch, window: int, dtype: torch.dtype) -> None:
        super().__init__(batch)
        self.window = window
        self.chunk = max(2 * window, _LEAST_CHUNK)
        distances = torch.arange(self.chunk)[:, None] + window - torch.arange(self.chunk + 2 * window)
        self.mask = torch.zeros(distances.shape, dtype=dtype).masked_fill_(distances.abs() > window, -torch.inf)
        """[queries, keys] of a chunk, the first key ``window`` before the first query; added to scores."""

    def attend(self, q_NHnd: Tensor, k_NHnd: Tensor, v_NHnd: Tensor) -> Tensor:
        """See :class:`~stepwell.models.encoder.attention.PackedAttention`."""
        length = q_NHnd.shape[2]
        if length <= self.window + 1:
            return super().attend(q_NHnd, k_NHnd, v_NHnd)
        parts = []
        for first in range(0, length, self.chunk):
            last = min(first + self.chunk, length)
            low, high = max(first - self.window, 0), min(last + self.window, length)
            shift = self.window - first
            mask = self.mask[: last - first, low + shift : high + shift]
            keys, values = k_NHnd[:, :, low:high], v_NHnd[:, :, low:high]
            parts.append(F.scaled_dot_product_attention(q_NHnd[:, :, first:last], keys, values, mask))
        return torch.cat(parts, 2)


class RotaryBatch:
    """Rotary attention within each text of one batch, for every kind of layer; what layers share is made once."""

    def __init__(self, batch: TextBatch, tables: RotaryTables) -> None:
        self.batch, self.tables = batch, tables
        self._attend: dict[int | None, PackedAttention] = {}
        self._rotations: dict[float, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: RotaryLayer, span: Span, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor) -> Tensor:
        """Queries, keys and values [R, heads, d] of a span's rows -> [R, heads * d]."""
        cos, sin = (span.take(table) for table in self._rotation(layer.theta, q_RHd.dtype))
        attend = self._attention(layer.window, q_RHd.dtype)
        return attend(span, rotate(q_RHd, cos, sin), rotate(k_RHd, cos, sin), v_RHd)

    def _rotation(self, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if theta not in self._rotations:
            self._rotations[theta] = self.tables.table(theta).at(self.batch.positions, dtype)
        return self._rotations[theta]

    def _attention(self, window: int | None, dtype: torch.dtype) -> PackedAttention:
        if window not in self._attend:
            self._attend[window] = (
                PackedAttention(self.batch) if window is None else LocalAttention(self.batch, window, dtype)
            )
        return self._attend[window]


class RotaryTables(nn.Module):
    """What the layers of all batches share: cosines and sines of every position, a table for each base."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self._tables: dict[float, RotaryTable] = {}

    def forward(self, batch: TextBatch) -> RotaryBatch:
        return RotaryBatch(batch, self)

    def table(self, theta: float) -> RotaryTable:
        """Made on first use: the model may have been built on the meta device."""
        if theta not in self._tables:
            self._tables[theta] = RotaryTable(PlainRotary(self.config.head_dim, self.config.max_positions, theta))
        return self._tables[theta]


class RotaryAttention(nn.Module):
    """Multi-head rotary attention; a unit is one head."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.head_dim, self.kind = config.head_dim, config.rotary[index]
        size = config.hidden_size
        self.qkv = nn.Linear(size, 3 * size, bias=config.attention_bias)
        self.out = nn.Linear(size, size, bias=config.attention_bias)

    def run_span(self, x_RD: Tensor, span: Span, attend: RotaryBatch, linear: SliceLinear) -> Tensor:
        """What the heads of ``span`` add for its rows: input [R, D] -> [R, D]."""
        start, stop = span.start * self.head_dim, span.stop * self.head_dim
        size = len(self.out.weight)
        projected = linear.rows(x_RD, [(self.qkv, first + start, first + stop) for first in (0, size, 2 * size)])
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in projected)
        mixed = attend(self.kind, span, q, k, v)
        return linear.columns(mixed, (self.out, start, stop), self.out.bias if start == 0 else None)
