"""Which of the tokens in a neighbourhood join, by their scores, so that a given number of tokens is left."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.vit.grid import Grid


@lru_cache(maxsize=256)
@torch.inference_mode(mode=False)  # kept for training too
def quarters(grid: Grid) -> Tensor:
    """int64 [patches]: the 2 x 2 neighbourhood of each patch; at odd edges there are smaller ones."""
    rows, columns = torch.arange(grid.height) // 2, torch.arange(grid.width) // 2
    return (rows[:, None] * ((grid.width + 1) // 2) + columns).flatten()


def mean_scores(scores_BN: Tensor, group_BN: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Of each group, the mean of its members' scores (0 without any) and their number, both [B, groups]."""
    zeros = scores_BN.new_zeros(len(scores_BN), num_groups)
    counts = zeros.scatter_add(1, group_BN, torch.ones_like(scores_BN))
    return zeros.scatter_add(1, group_BN, scores_BN) / counts.clamp_min(1.0), counts


class Joining(NamedTuple):
    """What becomes of N tokens of which K are to be left."""

    to: Tensor
    """int64 [B, N]: which of those left each goes on as; -1 = it stops."""
    left: Tensor
    """int64 [B, K], ascending: those left; where several join, it is the one with the lowest score."""


def join_lowest(means_BG: Tensor, group_BN: Tensor, scores_BN: Tensor, num_left: int) -> Joining:
    """Join the members of whole groups, those of the lowest mean first, until ``num_left`` tokens are left.

    Of the last group the members with the lowest scores join, so that the number is met exactly. If all groups have
    joined and there are still more, the groups of the lowest means stop.
    """
    batch, num_tokens = group_BN.shape
    ranks_BG = means_BG.argsort(dim=1, stable=True).argsort(1)
    order = scores_BN.argsort(dim=1, stable=True)
    order = order.gather(1, ranks_BG.gather(1, group_BN.gather(1, order)).argsort(dim=1, stable=True))
    # In this order groups lie end to end, and the first of each is the one that the others join.
    sorted_groups = group_BN.gather(1, order)
    leads = F.pad(sorted_groups[:, 1:] != sorted_groups[:, :-1], (1, 0), value=True)
    turn = torch.where(leads, (~leads).sum(1, keepdim=True) + leads.cumsum(1), (~leads).cumsum(1))
    leader = torch.where(leads, torch.arange(num_tokens), 0).cummax(1).values
    leader = torch.empty_like(order).scatter(1, order, order.gather(1, leader))
    is_left = torch.empty_like(leads).scatter(1, order, turn > num_tokens - num_left)
    place = is_left.cumsum(1) - 1
    joined = torch.where(is_left.gather(1, leader), place.gather(1, leader), -1)
    left = is_left.nonzero()[:, 1].view(batch, num_left)
    return Joining(torch.where(is_left, place, joined), left)
