"""Bidirectional attention of a packed batch: every token sees all tokens of its own text, nothing is padded.

Texts of equal length that lie side by side attend in one call, others in a call each: on ragged batches that is faster
than padded attention (quadratic in the longest text) and than masking a call over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.encoder.batch import TextBatch
from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.staircase import Rows, Span


@dataclass(frozen=True)
class Block:
    """Texts of equal length that lie side by side within the rows of a span."""

    first_row: int
    num_texts: int
    length: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.num_texts * self.length)

    def split(self, x_RHd: Tensor) -> Tensor:
        """This block's rows of [R, heads, d]: [texts, heads, length, d]."""
        return x_RHd[self.rows].view(self.num_texts, self.length, *x_RHd.shape[1:]).transpose(1, 2)


class Blocks:
    """The blocks of the rows of each span of one batch, worked out once for all layers."""

    def __init__(self, batch: TextBatch) -> None:
        self.batch = batch
        self._made: list[tuple[Rows, list[Block]]] = []

    def of(self, rows: Rows) -> list[Block]:
        """Blocks of a span's rows, ascending. A text is in a span in whole or not at all."""
        for known, blocks in self._made:
            if known is rows or (isinstance(rows, int) and isinstance(known, int) and known == rows):
                return blocks
        blocks = _blocks(self._lengths(rows))
        self._made.append((rows, blocks))
        return blocks

    def _lengths(self, rows: Rows) -> list[int]:
        pairs = zip(self.batch.cu_seqlens, self.batch.lengths, strict=False)
        if isinstance(rows, int):
            return [length for row, length in pairs if row < rows]
        chosen = set(rows.tolist())
        return [length for row, length in pairs if row in chosen]


def _blocks(lengths: Sequence[int]) -> list[Block]:
    blocks, row = [], 0
    for length, texts in groupby(lengths):
        blocks.append(Block(row, len(list(texts)), length))
        row = blocks[-1].rows.stop
    return blocks


class PackedAttention:
    """Scaled dot-product attention within each text of one batch."""

    def __init__(self, batch: TextBatch) -> None:
        self.blocks = Blocks(batch)

    def __call__(self, span: Span, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor) -> Tensor:
        """Queries, keys and values [R, heads, d] of a span's rows -> [R, heads * d]."""
        out_RU = q_RHd.new_empty(len(q_RHd), q_RHd.shape[1] * q_RHd.shape[2])
        blocks = self.blocks.of(span.rows)
        for block in blocks:
            q, k, v = (block.split(x) for x in (q_RHd, k_RHd, v_RHd))
            out_RU[block.rows] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
        out_RU[blocks[-1].rows.stop :] = 0  # fillers: memory that was never written may be slow to multiply
        return out_RU


class FullAttention(nn.Module):
    """What the layers of BERT share in one batch: nothing but who sees whom."""

    def __init__(self, _config: EncoderConfig) -> None:
        super().__init__()

    def forward(self, batch: TextBatch) -> PackedAttention:
        return PackedAttention(batch)


class SelfAttention(nn.Module):
    """Multi-head attention; a unit is one head."""

    def __init__(self, config: EncoderConfig, _index: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def run_span(self, x_RD: Tensor, span: Span, attend: PackedAttention, linear: SliceLinear) -> Tensor:
        """What the heads of ``span`` add for its rows: input [R, D] -> [R, D]."""
        units = (span.start * self.head_dim, span.stop * self.head_dim)
        projected = linear.rows(x_RD, [(part, *units) for part in (self.query, self.key, self.value)])
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in projected)
        mixed = attend(span, q, k, v)
        return linear.columns(mixed, (self.out, *units), self.out.bias if span.start == 0 else None)
