"""The packed batch: tokens of many sequences end to end, deepest sub-network first, and the plan of its staircase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from stepwell.models.cache import CacheSequence, PagedKVCache
from stepwell.models.ladder import SubNetwork
from stepwell.models.layers.staircase import Span, WideRule, plan_spans


@dataclass(frozen=True)
class PackedSequence:
    """The next tokens of one sequence, to run at one sub-network over its cache pages."""

    token_ids: Sequence[int]
    """Tokens to run now, at least one."""
    start: int
    """Position of the first of them: so many tokens are in the cache already."""
    subnet: SubNetwork
    pages: CacheSequence
    """Pages with room for ``start + len(token_ids)`` tokens, in all layers where the sub-network has attention."""
    wants_logits: bool
    """Whether the logits after the last token are wanted (not for a chunk in mid-prompt)."""
    keep_exit: bool = False
    """Whether the exit hidden states of these tokens are wanted."""
    hidden: Tensor | None = None
    """[tokens, D]: the residual stream that these rows start from instead of embeddings (see ``models/exits``). The
    token ids are not looked at then. The sub-network has no units in the layers that this stream went through."""


@dataclass(frozen=True)
class PackedBatch:
    """Sequences sorted so that every unit of the network works on a prefix of the rows. One row a token."""

    sequences: tuple[PackedSequence, ...]
    """Deepest (largest) first."""
    cache: PagedKVCache
    """The cache all their pages belong to."""
    token_ids: Tensor
    """int64 [T]."""
    positions: Tensor
    """int64 [T], each token's position in its sequence."""
    cu_seqlens: tuple[int, ...]
    """Row of each sequence's first token, and at last T: ``len(sequences) + 1`` numbers."""
    output_rows: Tensor
    """int64: rows whose logits are wanted, in the order the caller gave the sequences."""
    exit_rows: tuple[slice, ...] = ()
    """Rows of each sequence whose exit hidden states are wanted, in the order the caller gave them."""

    @property
    def joining(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows that start from hidden states, and those states."""
        for index, sequence in enumerate(self.sequences):
            if sequence.hidden is not None:
                yield slice(*self.cu_seqlens[index : index + 2]), sequence.hidden

    @property
    def subnets(self) -> list[SubNetwork]:
        return [sequence.subnet for sequence in self.sequences]

    @property
    def query_lens(self) -> list[int]:
        return [len(sequence.token_ids) for sequence in self.sequences]

    @classmethod
    def pack(cls, sequences: Sequence[PackedSequence], cache: PagedKVCache) -> PackedBatch:
        """Sort by sub-network, largest first, and lay the tokens end to end."""
        order = sorted(range(len(sequences)), key=lambda i: _size_first(sequences[i]))
        packed = tuple(sequences[i] for i in order)
        bounds = (0, *accumulate(len(sequence.token_ids) for sequence in packed))
        rows = {i: slice(bounds[at], bounds[at + 1]) for at, i in enumerate(order)}
        return cls(
            sequences=packed,
            cache=cache,
            token_ids=torch.tensor([token for sequence in packed for token in sequence.token_ids]),
            positions=torch.tensor([p for s in packed for p in range(s.start, s.start + len(s.token_ids))]),
            cu_seqlens=bounds,
            output_rows=torch.tensor(
                [rows[i].stop - 1 for i, sequence in enumerate(sequences) if sequence.wants_logits], dtype=torch.int64
            ),
            exit_rows=tuple(rows[i] for i, sequence in enumerate(sequences) if sequence.keep_exit),
        )


def _size_first(sequence: PackedSequence) -> tuple[int, int]:
    # The identity keeps equal sub-networks together when a batch mixes ladders.
    return -sequence.subnet.num_units, id(sequence.subnet)


@dataclass(frozen=True)
class LayerPlan:
    """The spans that one layer runs; attention in key-value head groups, FFN in channels."""

    attention: tuple[Span, ...]
    ffn: tuple[Span, ...]


def plan_layers(
    subnets: Sequence[SubNetwork], num_rows: Sequence[int], run_wide: WideRule | None = None
) -> list[LayerPlan]:
    """The staircase of every layer up to the deepest one used.

    Args:
        subnets: sub-network of each sequence, largest first.
        num_rows: its rows.
        run_wide: see :func:`~stepwell.models.layers.staircase.plan_spans`. Attention spans are always exact: a
            narrower sequence has no keys in the cache for heads it never ran.
    """
    runs: list[tuple[SubNetwork, int]] = []
    for subnet, rows in zip(subnets, num_rows, strict=True):
        if runs and runs[-1][0] is subnet:
            runs[-1] = (subnet, runs[-1][1] + rows)
        else:
            runs.append((subnet, rows))
    rows_of_run = [rows for _, rows in runs]
    depth = max((subnet.depth for subnet in subnets), default=0)
    attention: dict[tuple[int, ...], tuple[Span, ...]] = {}
    ffn: dict[tuple[int, ...], tuple[Span, ...]] = {}
    plans = []
    for layer in range(depth):
        # Layers of the same widths share their spans: what is worked out for a span's rows serves them all.
        groups = tuple([subnet.kv_groups[layer] for subnet, _ in runs])
        channels = tuple([subnet.ffn_channels[layer] for subnet, _ in runs])
        if groups not in attention:
            attention[groups] = plan_spans(groups, rows_of_run)
        if channels not in ffn:
            ffn[channels] = plan_spans(channels, rows_of_run, run_wide)
        plans.append(LayerPlan(attention[groups], ffn[channels]))
    return plans
