"""Tokens of a group picked out, and put back, by whole rows."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(x_BTD: Tensor, index_BK: Tensor) -> Tensor:
    """Tokens [B, K, D] of these places."""
    return x_BTD.flatten(0, 1).index_select(0, _flat(x_BTD, index_BK)).view(*index_BK.shape, -1)


def put_rows(x_BTD: Tensor, index_BK: Tensor, rows_BKD: Tensor) -> Tensor:
    """``x`` with other tokens at these places, all different: written in place unless a gradient is wanted."""
    index, rows = _flat(x_BTD, index_BK), rows_BKD.flatten(0, 1)
    if torch.is_grad_enabled():
        return x_BTD.flatten(0, 1).index_copy(0, index, rows).view_as(x_BTD)
    x_BTD.view(-1, x_BTD.shape[2]).index_copy_(0, index, rows)
    return x_BTD


def _flat(x_BTD: Tensor, index_BK: Tensor) -> Tensor:
    """Places [B * K] among the rows of all items. Whole rows are copied at once by these: gather and scatter, which
    take an index for every element, need nine times as long."""
    return (index_BK + torch.arange(0, x_BTD.shape[0] * x_BTD.shape[1], x_BTD.shape[1])[:, None]).flatten()
