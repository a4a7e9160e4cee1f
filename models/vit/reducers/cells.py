"""Coarser grids over the patches of an image, and soft assignment of patches to the cells around them."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.vit.grid import Grid

Cells = tuple[int, int]
"""Rows and columns of a coarser grid."""


@lru_cache(maxsize=256)
def nested_cells(grid: Grid) -> tuple[Cells, ...]:
    """Grids from 1 x 1 to the full one, each a row or a column more than the one before, keeping to its proportions."""
    cells = [(1, 1)]
    while cells[-1] != (grid.height, grid.width):
        rows, columns = cells[-1]
        grows_tall = columns == grid.width or (rows < grid.height and rows * grid.width <= columns * grid.height)
        cells.append((rows + 1, columns) if grows_tall else (rows, columns + 1))
    return tuple(cells)


def pool(patches_BND: Tensor, grid: Grid, cells: Cells) -> Tensor:
    """The mean of the patches of each cell [B, cells, D] (adaptive average pooling)."""
    plane = patches_BND.transpose(1, 2).unflatten(2, (grid.height, grid.width))
    return F.adaptive_avg_pool2d(plane, cells).flatten(2).transpose(1, 2)


@lru_cache(maxsize=64)
def out_of_reach(grid: Grid, cells: Cells, radius: int) -> Tensor:
    """What to add to logits [patches, cells]: -inf where the cell is more than ``radius`` rows or columns of cells from
    the one that the patch lies in, else 0."""
    with torch.inference_mode(False):
        rows, columns = (torch.arange(n) * c // n for n, c in zip((grid.height, grid.width), cells, strict=True))
        near_rows = (rows[:, None] - torch.arange(cells[0])).abs() <= radius
        near_columns = (columns[:, None] - torch.arange(cells[1])).abs() <= radius
        near = near_rows[:, None, :, None] & near_columns[None, :, None, :]
        return torch.where(near.flatten(2).flatten(0, 1), 0.0, -torch.inf)


def weighted_means(weights_BNM: Tensor, x_BND: Tensor) -> Tensor:
    """For each column of ``weights`` the weighted mean of ``x``: [B, M, D]."""
    totals = weights_BNM.sum(1).clamp_min(1e-12)
    return weights_BNM.transpose(1, 2) @ x_BND / totals[..., None]
