"""The packed batch of an encoder: token ids of many texts end to end, largest sub-network first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from stepwell.models.kernels.linear import padded_rows
from stepwell.models.ladder import SubNetwork
from stepwell.models.one_shot import Item


@dataclass(frozen=True)
class TextBatch:
    """Texts sorted so that every unit of the network works on a prefix of the rows; one row a token.

    Rows from ``cu_seqlens[-1]`` on, if any, are fillers: no text's, run along with the last one's sub-network, looked
    at by nobody. They give products a number of rows for which oneDNN has code.
    """

    order: tuple[int, ...]
    """Place in the caller's list of each text."""
    subnets: tuple[SubNetwork, ...]
    lengths: tuple[int, ...]
    """Tokens of each text."""
    cu_seqlens: tuple[int, ...]
    """Row of each text's first token, and at last the tokens of all: ``len(lengths) + 1`` numbers."""
    token_ids: Tensor
    """int64 [T], T rows with the fillers."""
    positions: Tensor
    """int64 [T], each token's position in its text; 0 for fillers."""
    token_types: Tensor | None = None
    """int64 [T], 0 for fillers; None = all are 0."""

    @cached_property
    def rows(self) -> tuple[slice, ...]:
        """Rows of each text."""
        return tuple(slice(a, b) for a, b in zip(self.cu_seqlens, self.cu_seqlens[1:], strict=False))

    @cached_property
    def first_rows(self) -> Tensor:
        """int64 [texts]: row of each text's first token."""
        return torch.tensor(self.cu_seqlens[:-1])

    @property
    def num_rows(self) -> list[int]:
        """Rows that run each text's sub-network; the last one's with the fillers."""
        fillers = len(self.token_ids) - self.cu_seqlens[-1]
        return [*self.lengths[:-1], self.lengths[-1] + fillers]

    @classmethod
    def pack(cls, items: Sequence[Item], padded: bool) -> TextBatch:
        """Sort by sub-network, largest first, and by length within one: texts of equal length attend in one call.

        ``padded``: append fillers up to a number of rows products are run for.
        """
        order = tuple(sorted(range(len(items)), key=lambda i: _size_first(items[i])))
        lengths = [len(items[i].data) for i in order]
        bounds = (0, *accumulate(lengths))
        num_fillers = padded_rows(bounds[-1]) - bounds[-1] if padded else 0
        starts = np.repeat(np.array(bounds), [*lengths, num_fillers])
        positions = np.arange(bounds[-1] + num_fillers) - starts
        positions[bounds[-1] :] = 0
        fillers = torch.zeros(num_fillers, dtype=torch.int64)
        return cls(
            order=order,
            subnets=tuple(items[i].subnet for i in order),
            lengths=tuple(lengths),
            cu_seqlens=bounds,
            token_ids=torch.cat([*(items[i].data for i in order), fillers]),
            positions=torch.from_numpy(positions),
            token_types=_token_types([items[i] for i in order], fillers),
        )


def _token_types(items: Sequence[Item], fillers: Tensor) -> Tensor | None:
    if all(item.token_types is None for item in items):
        return None
    for item in items:
        assert item.token_types is None or item.token_types.shape == item.data.shape, "one type a token"
    types = [torch.zeros_like(item.data) if item.token_types is None else item.token_types for item in items]
    return torch.cat([*types, fillers])


def _size_first(item: Item) -> tuple[int, int, int]:
    # The identity keeps equal sub-networks together when a batch mixes ladders.
    return -item.subnet.num_units, id(item.subnet), -len(item.data)
