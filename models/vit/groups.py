"""The packed batch of images: groups of items that run alike, end to end, largest sub-network first.

A group's items have the same sub-network, token grid and reduction, so they always have the same number of tokens: a
group is one run of rows that can be seen as [items, tokens, D] without a copy. Groups differ in tokens from layer to
layer; nothing is padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.layers.staircase import Span
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import Pass

Place = Literal["before_layer", "after_layer"]


@dataclass
class Group:
    """Items that run alike, and how many tokens each has now."""

    subnet: SubNetwork
    grid: Grid
    reduction: Reduction | None
    way: Pass
    indices: list[int] = field(default_factory=list)
    """Its items' places in the caller's order."""
    num_tokens: int = 0
    keys: Tensor | None = None
    """Mean keys of the layer's attention, if its pass wants them."""

    @property
    def num_rows(self) -> int:
        return len(self.indices) * self.num_tokens

    def view(self, rows_RX: Tensor) -> Tensor:
        """Its rows as [items, tokens, ...]."""
        seen: Tensor = rows_RX.unflatten(0, (len(self.indices), self.num_tokens))
        return seen


def split(x_TD: Tensor, groups: Sequence[Group]) -> list[Tensor]:
    """Each group's tokens [items, tokens, D], views of the packed rows."""
    parts = x_TD.split([group.num_rows for group in groups])
    return [group.view(part) for group, part in zip(groups, parts, strict=True)]


def join(x_TD: Tensor, groups: Sequence[Group], changed: Mapping[int, Tensor]) -> Tensor:
    """The packed rows with the tokens of some groups (by place) changed in value and number."""
    if not changed:
        return x_TD
    parts = split(x_TD, groups)
    for index, tokens_BTD in changed.items():
        parts[index], groups[index].num_tokens = tokens_BTD, tokens_BTD.shape[1]
    return torch.cat([part.flatten(0, 1) for part in parts]) if len(parts) > 1 else parts[0].flatten(0, 1)


class GroupAttention:
    """Attention within each item, one call for a run of groups whose items have equally many tokens."""

    def __init__(self, groups: Sequence[Group], layer: int) -> None:
        self.groups, self.layer = groups, layer
        for group in groups:
            group.keys = None

    def __call__(self, span: Span, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor) -> Tensor:
        """See :class:`~stepwell.models.vit.layers.Attend`."""
        groups = [group for group in self.groups if group.subnet.kv_groups[self.layer] >= span.stop]
        self._note_keys(groups, k_RHd)
        outs, first = [], 0
        for num_items, num_tokens, bias_BT in _runs(groups):
            rows = slice(first, first := first + num_items * num_tokens)
            q, k, v = (t[rows].unflatten(0, (num_items, num_tokens)).transpose(1, 2) for t in (q_RHd, k_RHd, v_RHd))
            mask = None if bias_BT is None else bias_BT[:, None, None].to(q.dtype)
            outs.append(
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2).flatten(0, 1)
            )
        return torch.cat(outs) if len(outs) > 1 else outs[0]

    def _note_keys(self, groups: Sequence[Group], k_RHd: Tensor) -> None:
        first = 0
        for group in groups:
            rows = slice(first, first := first + group.num_rows)
            if group.way.wants_keys:
                share = k_RHd.shape[1] / group.subnet.kv_groups[self.layer]
                keys = group.view(k_RHd[rows].mean(1) * share)
                group.keys = keys if group.keys is None else group.keys + keys


def _runs(groups: Sequence[Group]) -> list[tuple[int, int, Tensor | None]]:
    """Items, tokens of each, and log sizes, of runs of groups that can attend in one call."""
    runs: list[tuple[int, int, Tensor | None]] = []
    for group in groups:
        sizes = group.way.sizes_BT
        if sizes is None and runs and runs[-1][1] == group.num_tokens and runs[-1][2] is None:
            runs[-1] = (runs[-1][0] + len(group.indices), group.num_tokens, None)
        else:
            runs.append((len(group.indices), group.num_tokens, None if sizes is None else sizes.log()))
    return runs
