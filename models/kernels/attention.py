"""Attention of a packed batch over paged keys and values, in plain torch.

Queries are ragged (``cu_seqlens``), keys and values lie in pages. Where the pages of a sequence follow each other in
the pool (the allocator sees to it), its keys are read in place as one strided view; else they are gathered. Sequences
that decode one token over short contexts share one padded call, because there a call costs more than the padding.
The query heads of a key-value head go together, so keys are read once (GQA).

Keys and values are kept in the precision of the cache. On the CPU that is float32 for bfloat16 models too: torch's
attention takes 2.6 times longer over bfloat16 keys of a single query (``benchmarks/results/attention.md``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.config import DecoderConfig
from stepwell.models.kernels.masks import Masks
from stepwell.models.kernels.scratch import Scratch
from stepwell.models.layers.staircase import Rows, Span
from stepwell.models.packed import PackedBatch

SHARED_CALL_BYTES = 256 * 1024
"""Keys of one sequence, layer and step below which decoding sequences share a padded call."""


class DenseAttention:
    """Causal attention of equally long sequences, without a cache (training, evaluation)."""

    def __init__(self, config: DecoderConfig, num_sequences: int) -> None:
        self.config, self.num_sequences, self._masks = config, num_sequences, Masks()

    def __call__(self, layer: int, span: Span, q_RHd: Tensor, k_RGd: Tensor, v_RGd: Tensor) -> Tensor:
        """See :class:`~stepwell.models.layers.blocks.Attend`."""
        q, k, v = (t.unflatten(0, (self.num_sequences, -1)).transpose(1, 2) for t in (q_RHd, k_RGd, v_RGd))
        out = _prefill(q, k, v, 0, self.config.window(layer), self._masks)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)


@dataclass
class _Member:
    """A sequence within one span: its place in the batch and its rows within the span."""

    index: int
    first: int
    stop: int
    start: int
    """Position of its first query."""

    @property
    def context(self) -> int:
        """Keys it sees with its last query."""
        return self.start + self.stop - self.first


@dataclass
class _Work:
    """The sequences of one set of rows, sorted by how their attention runs; the same for every layer they run."""

    rows: Rows
    members: list[_Member]
    sequences: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    prefills: list[_Member] = field(default_factory=list)
    alone: list[_Member] = field(default_factory=list)
    """Decoding one token over a long context: a call each."""
    together: list[_Member] = field(default_factory=list)
    """Decoding one token over a short context: one padded call."""


class PagedAttention:
    """Attention of one packed batch: appends its keys and values to the pages, then attends over all of them."""

    def __init__(self, config: DecoderConfig, batch: PackedBatch, scratch: Scratch) -> None:
        self.config, self.batch, self.scratch = config, batch, scratch
        keys, values = batch.cache.keys, batch.cache.values
        assert keys is not None, "a cache without storage has nothing to attend to"
        assert values is not None
        self.pools = (keys, values)
        self.streams = (keys.flatten(1, 2), values.flatten(1, 2))
        self.page_tokens = batch.cache.page_tokens
        self.tables_LSB = _layer_tables(batch, config.num_layers, self.page_tokens)
        self._works: list[_Work] = []
        self._masks = Masks()

    def __call__(self, layer: int, span: Span, q_RHd: Tensor, k_RGd: Tensor, v_RGd: Tensor) -> Tensor:
        """See :class:`~stepwell.models.layers.blocks.Attend`."""
        work = self._work(span.rows)
        self._append(layer, span, work, k_RGd, v_RGd)
        out = torch.empty_like(q_RHd)
        for member in work.prefills:
            rows = slice(member.first, member.stop)
            fresh = (k_RGd[rows].transpose(0, 1), v_RGd[rows].transpose(0, 1))
            k, v = (t.unsqueeze(0) for t in (fresh if member.start == 0 else self._read(layer, span, member, 0)))
            q = q_RHd[rows].to(k.dtype).transpose(0, 1).unsqueeze(0)
            mixed = _prefill(q, k, v, member.start, self.config.window(layer), self._masks)
            out[rows] = mixed[0].transpose(0, 1)
        for member in work.alone:
            self._decode_alone(layer, span, member, q_RHd, out)
        if work.together:
            self._decode_together(layer, span, work.together, q_RHd, out)
        return out.flatten(1)

    def _work(self, rows: Rows) -> _Work:
        for work in self._works:
            if work.rows is rows or (isinstance(rows, int) and isinstance(work.rows, int) and work.rows == rows):
                return work
        work = self._sort_out(rows)
        self._works.append(work)
        return work

    def _sort_out(self, rows: Rows) -> _Work:
        members = list(_members(self.batch, rows))
        lengths = [m.stop - m.first for m in members]
        positions = np.concatenate([np.arange(m.start, m.context) for m in members])
        sequence = np.repeat([m.index for m in members], lengths)
        work = _Work(rows, members, sequence, positions // self.page_tokens, positions % self.page_tokens)
        token_bytes = self.pools[0][:, 0, 0].numel() * self.pools[0].element_size()
        for member, length in zip(members, lengths, strict=True):
            if length > 1:
                work.prefills.append(member)
            elif member.context * token_bytes < SHARED_CALL_BYTES:
                work.together.append(member)
            else:
                work.alone.append(member)
        return work

    def _append(self, layer: int, span: Span, work: _Work, k_RGd: Tensor, v_RGd: Tensor) -> None:
        pages = self.tables_LSB[layer, work.sequences, work.blocks]
        slots = torch.from_numpy(pages * self.page_tokens + work.offsets)
        for stream, fresh_RGd in zip(self.streams, (k_RGd, v_RGd), strict=True):
            stream[span.start : span.stop].index_copy_(1, slots, fresh_RGd.transpose(0, 1).to(stream.dtype))

    def _read(self, layer: int, span: Span, member: _Member, low: int) -> tuple[Tensor, Tensor]:
        """Keys and values [groups, context - low, d] of positions ``low..context``."""
        pages = self.batch.sequences[member.index].pages
        first = pages.contiguous_start(pages.row_of(layer)) * self.page_tokens
        groups = slice(span.start, span.stop)
        if first >= 0:
            where = slice(first + low, first + member.context)
            return self.streams[0][groups, where], self.streams[1][groups, where]
        num_blocks = -(-member.context // self.page_tokens)
        ids = torch.from_numpy(self.tables_LSB[layer, member.index, :num_blocks])
        keys, values = (pool[groups].index_select(1, ids).flatten(1, 2) for pool in self.pools)
        return keys[:, low : member.context], values[:, low : member.context]

    def _decode_alone(self, layer: int, span: Span, member: _Member, q_RHd: Tensor, out_RHd: Tensor) -> None:
        window = self.config.window(layer)
        low = max(0, member.context - window) if window else 0
        k, v = (t.unsqueeze(0) for t in self._read(layer, span, member, low))
        q = q_RHd[member.first].to(k.dtype).view(1, -1, self.config.group_heads, self.config.head_dim)
        out_RHd[member.first] = F.scaled_dot_product_attention(q, k, v).reshape(out_RHd.shape[1:])

    def _decode_together(
        self, layer: int, span: Span, members: Sequence[_Member], q_RHd: Tensor, out_RHd: Tensor
    ) -> None:
        contexts = [m.context for m in members]
        num_blocks = -(-max(contexts) // self.page_tokens)
        ids = torch.from_numpy(self.tables_LSB[layer, [m.index for m in members], :num_blocks].reshape(-1))
        num_keys = num_blocks * self.page_tokens
        k, v = (
            self._gather(name, pool[span.start : span.stop], ids).view(-1, len(members), num_keys, self.config.head_dim)
            for name, pool in zip(("keys", "values"), self.pools, strict=True)
        )
        rows = torch.tensor([m.first for m in members])
        q = q_RHd[rows].to(k.dtype).view(len(members), -1, self.config.group_heads, self.config.head_dim)
        mask = self._masks.context(tuple(contexts), num_keys, self.config.window(layer), q.dtype)
        mixed = F.scaled_dot_product_attention(q, k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask)
        out_RHd[rows] = mixed.reshape(len(members), *out_RHd.shape[1:]).to(out_RHd.dtype)

    def _gather(self, name: str, pool_GPsd: Tensor, ids: Tensor) -> Tensor:
        """The pages ``ids`` of each head, in scratch memory: [groups, len(ids), page_tokens, d]."""
        groups, _, *page = pool_GPsd.shape
        out = self.scratch.take(name, (groups, len(ids), *page), pool_GPsd.dtype)
        return torch.index_select(pool_GPsd, 1, ids, out=out)


def _layer_tables(batch: PackedBatch, num_layers: int, page_tokens: int) -> npt.NDArray[np.int64]:
    """Page ids by layer, sequence and block: [num_layers, sequences, blocks].

    Past a sequence's end its own first page is repeated, so that what a masked position reads is its own.
    """
    blocks = [-(-(s.start + len(s.token_ids)) // page_tokens) for s in batch.sequences]
    tables = np.zeros((num_layers, len(blocks), max(blocks)), dtype=np.int64)
    for index, (sequence, num_blocks) in enumerate(zip(batch.sequences, blocks, strict=True)):
        pages, layers = sequence.pages, sequence.subnet.kv_layers
        where: slice | list[int] = slice(len(layers)) if layers == tuple(range(len(layers))) else list(layers)
        table = pages.table  # of more layers than run now, where its level may change
        if layers != pages.subnet.kv_layers:
            table = table[[pages.row_of(layer) for layer in layers]]
        tables[where, index, :num_blocks] = table[:, :num_blocks]
        tables[where, index, num_blocks:] = table[:, :1]
    return tables


def _members(batch: PackedBatch, rows: Rows) -> Iterator[_Member]:
    """The sequences whose rows are in ``rows``, with their place there. A sequence is in whole or not at all."""
    chosen = None if isinstance(rows, int) else set(rows.tolist())
    first = 0
    for index, sequence in enumerate(batch.sequences):
        row = batch.cu_seqlens[index]
        if (row < rows) if chosen is None else (row in chosen):
            length = len(sequence.token_ids)
            yield _Member(index, first, first + length, sequence.start)
            first += length


def _prefill(q_BHQd: Tensor, k_BGKd: Tensor, v_BGKd: Tensor, start: int, window: int | None, masks: Masks) -> Tensor:
    """Causal attention of queries at positions ``start..`` over keys at positions ``0..``: [B, H, Q, d]."""
    gqa = q_BHQd.shape[1] != k_BGKd.shape[1]
    num_queries, num_keys = q_BHQd.shape[2], k_BGKd.shape[2]
    if start == 0 and (window is None or num_keys <= window):
        return F.scaled_dot_product_attention(q_BHQd, k_BGKd, v_BGKd, is_causal=True, enable_gqa=gqa)
    mask = masks.causal(num_queries, start, window, q_BHQd.dtype)
    return F.scaled_dot_product_attention(q_BHQd, k_BGKd, v_BGKd, attn_mask=mask, enable_gqa=gqa)
