"""Disentangled attention of a packed batch (He et al. 2021, arXiv 2006.03654, section 3.1; DeBERTaV3: 2111.09543).

The score of query i and key j is ``q_i k_j + q_i K[i - j] + k_j Q[i - j]``, where K and Q are projections of a table of
distances: of the weights alone, so they are computed once. A product of all queries with the rows of K that a text can
meet, one a distance, has the second term of (i, j) in column ``i - j``: a shifted view of it, no gather, is the matrix
of the terms. Likewise the third term.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.encoder.attention import Block, Blocks
from stepwell.models.encoder.batch import TextBatch
from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.positions import RelativePositions
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.kernels.scratch import Scratch
from stepwell.models.layers.staircase import Span

_CHUNK_SCORES = 1 << 17
"""Products with distances are made for so many heads at once that they have about so many numbers: half the level 2
cache (one core of an AMD EPYC, texts of 128 to 256 tokens: 4.0 and 14 ms, all heads at once 4.6 and 17 ms)."""
_LEAST_DISTANCES = 64


@dataclass(frozen=True)
class Distances:
    """What one layer makes of every distance that a text may have, scaled as scores are."""

    longest: int
    """Tokens of the longest text it serves."""
    keys: Tensor | None
    """K [heads, 2 * longest - 1, d], distances falling from ``longest - 1`` to ``1 - longest``."""
    queries: Tensor | None
    """Q, of the same shape, distances rising."""

    def of(self, table_HWd: Tensor, heads: slice, length: int) -> Tensor:
        """The part of a table for some heads and a text's length: [heads, d, 2 * length - 1]."""
        first = self.longest - length
        return table_HWd[heads, first : first + 2 * length - 1].transpose(1, 2)


class DisentangledBatch:
    """Disentangled attention within each text of one batch."""

    def __init__(self, batch: TextBatch, table: DistanceTable) -> None:
        self.batch, self.table = batch, table
        self.longest = max(batch.lengths)
        self.blocks = Blocks(batch)

    def __call__(self, span: Span, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor, distances: Distances) -> Tensor:
        """Queries, keys and values [R, heads, d] of a span's rows -> [R, heads * d]."""
        out_RHd = q_RHd.new_empty(q_RHd.shape)
        blocks = self.blocks.of(span.rows)
        for block in blocks:
            for heads in _head_chunks(block, q_RHd.shape[1]):
                q, k, v = (x[block.rows, heads] for x in (q_RHd, k_RHd, v_RHd))
                of_model = slice(span.start + heads.start, span.start + heads.stop)
                out_RHd[block.rows, heads] = self._attend(block, q, k, v, of_model, distances)
        out_RHd[blocks[-1].rows.stop :] = 0  # fillers
        return out_RHd.flatten(1)

    def _attend(
        self, block: Block, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor, heads: slice, distances: Distances
    ) -> Tensor:
        terms = []
        if distances.keys is not None:
            keys_HdW = distances.of(distances.keys, heads, block.length)
            terms.append(self._term("keys", block, q_RHd, keys_HdW))
        if distances.queries is not None:
            queries_HdW = distances.of(distances.queries, heads, block.length)
            terms.append(self._term("queries", block, k_RHd, queries_HdW).transpose(2, 3))
        q, k, v = (x.unflatten(0, (block.num_texts, block.length)).transpose(1, 2) for x in (q_RHd, k_RHd, v_RHd))
        out = F.scaled_dot_product_attention(q, k, v, self._sum(terms), scale=self.table.scale)
        return out.transpose(1, 2).flatten(0, 1)

    def _term(self, name: str, block: Block, x_RHd: Tensor, table_HdW: Tensor) -> Tensor:
        """``x_r table[n - 1 - r + c]`` of the tokens r and c of each text: a view [texts, heads, n, n]."""
        n, width = block.length, table_HdW.shape[2]
        heads, rows = x_RHd.shape[1], x_RHd.shape[0]
        memory = self._memory(name, (heads, rows, width), x_RHd.dtype)
        product = torch.bmm(x_RHd.transpose(0, 1), table_HdW, out=memory)
        strides = (n * width, rows * width, width - 1, 1)
        return product.as_strided((block.num_texts, heads, n, n), strides, product.storage_offset() + n - 1)

    def _sum(self, terms: list[Tensor]) -> Tensor | None:
        if len(terms) < 2:
            return terms[0].contiguous() if terms else None
        return torch.add(*terms, out=self._memory("sum", terms[0].shape, terms[0].dtype))

    def _memory(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        # Outside of inference the products may be wanted for gradients, and memory of inference may not be written.
        return self.table.scratch.take(name, shape, dtype) if torch.is_inference_mode_enabled() else None


def _head_chunks(block: Block, num_heads: int) -> Iterator[slice]:
    scores = block.num_texts * block.length * (2 * block.length - 1)
    step = max(_CHUNK_SCORES // scores, 1)
    return (slice(first, min(first + step, num_heads)) for first in range(0, num_heads, step))


class DistanceTable(nn.Module):
    """What the layers share: the table of distances, and its norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.spec = relative_positions(config)
        self.scale = 1.0 / math.sqrt(config.head_dim * self.spec.num_terms)
        self.rows = nn.Embedding(2 * self.spec.span, config.hidden_size) if self.spec.span else None
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps) if self.spec.table_norm else None
        self.scratch = Scratch()

    def forward(self, batch: TextBatch) -> DisentangledBatch:
        return DisentangledBatch(batch, self)

    def states(self) -> Tensor:
        """The table's rows as attention takes them, [2 * span, D]."""
        assert self.rows is not None
        states: Tensor = self.rows.weight if self.norm is None else self.norm(self.rows.weight)
        return states


class _Disentangled(nn.Module):
    """Multi-head disentangled attention but for the projections of content; a unit is one head."""

    def __init__(self, config: EncoderConfig, _index: int) -> None:
        super().__init__()
        self.spec, self.head_dim = relative_positions(config), config.head_dim
        size = config.hidden_size
        self.out = nn.Linear(size, size)
        self.distance_key: nn.Linear | None = None
        self.distance_query: nn.Linear | None = None
        if self.spec.content_to_position and not self.spec.shares_projections:
            self.distance_key = nn.Linear(size, size, bias=not self.spec.interleaved)
        if self.spec.position_to_content and not self.spec.shares_projections:
            self.distance_query = nn.Linear(size, size)
        self._kept: Distances | None = None

    def project(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [R, heads, d] of a span's rows and heads."""
        raise NotImplementedError

    def run_span(self, x_RD: Tensor, span: Span, attend: DisentangledBatch, linear: SliceLinear) -> Tensor:
        """What the heads of ``span`` add for its rows: input [R, D] -> [R, D]."""
        mixed = attend(span, *self.project(x_RD, span, linear), self._distances(attend))
        units = (span.start * self.head_dim, span.stop * self.head_dim)
        return linear.columns(mixed, (self.out, *units), self.out.bias if span.start == 0 else None)

    def _distances(self, attend: DisentangledBatch) -> Distances:
        """Kept from batch to batch while weights are frozen; made anew, for twice the length, when a text is longer."""
        keeps = torch.is_inference_mode_enabled() and not self.out.weight.requires_grad
        if self._kept is None or not keeps or self._kept.longest < attend.longest:
            longest = max(1 << (attend.longest - 1).bit_length(), _LEAST_DISTANCES)
            made = self._project_distances(longest, attend.table)
            self._kept = made if keeps else None
            return made
        return self._kept

    def _project_distances(self, longest: int, table: DistanceTable) -> Distances:
        rows = self.spec.table_rows(longest)

        def spread(layer: nn.Linear | None, rows: Tensor) -> Tensor | None:
            if layer is None:
                return None
            projected: Tensor = F.linear(table.states(), layer.weight, layer.bias) * table.scale
            states: Tensor = projected[rows].unflatten(1, (-1, self.head_dim)).transpose(0, 1)
            return states.contiguous()

        key, query = self._distance_layers()
        return Distances(longest, spread(key, rows.flip(0)), spread(query, rows))

    def _distance_layers(self) -> tuple[nn.Linear | None, nn.Linear | None]:
        return self.distance_key, self.distance_query


class DisentangledAttention(_Disentangled):
    """As in DeBERTa v2 and v3."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__(config, index)
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def project(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> tuple[Tensor, Tensor, Tensor]:
        units = (span.start * self.head_dim, span.stop * self.head_dim)
        projected = linear.rows(x_RD, [(part, *units) for part in (self.query, self.key, self.value)])
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in projected)
        return q, k, v

    def _distance_layers(self) -> tuple[nn.Linear | None, nn.Linear | None]:
        if not self.spec.shares_projections:
            return super()._distance_layers()
        key = self.key if self.spec.content_to_position else None
        return key, self.query if self.spec.position_to_content else None


class InterleavedAttention(_Disentangled):
    """As in DeBERTa v1: the weights of a head's query, key and value lie side by side, and keys have no bias."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__(config, index)
        size = config.hidden_size
        self.content = nn.Linear(size, 3 * size, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(size)) for _ in range(2))

    def project(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> tuple[Tensor, Tensor, Tensor]:
        d = self.head_dim
        units = slice(span.start * d, span.stop * d)
        content = linear.rows(x_RD, [(self.content, 3 * units.start, 3 * units.stop)])[0]
        q, k, v = content.unflatten(-1, (-1, 3, d)).unbind(2)
        return q + self.q_bias[units].view(-1, d), k, v + self.v_bias[units].view(-1, d)


def relative_positions(config: EncoderConfig) -> RelativePositions:
    """The description that a family with this attention always has."""
    assert config.relative is not None
    return config.relative
