"""Coarser grids over the patches of an image, and soft assignment of patches to the cells around them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

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
    # Seen so, a single image is in the layout that torch pools without a copy too.
    plane = patches_BND.unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(plane, cells).flatten(2).transpose(1, 2)


class Band(NamedTuple):
    """Patches of some rows, and all cells that any of them may belong to."""

    patches: slice
    cells: slice
    unreachable: Tensor
    """[patches, cells]: what to add to logits: -inf where a cell is too far from the one that the patch lies in."""


@lru_cache(maxsize=256)
@torch.inference_mode(mode=False)  # kept for training too
def bands(grid: Grid, cells: Cells, radius: int) -> tuple[Band, ...]:
    """A band for every ``radius + 1`` rows of cells: few products, and few of them with cells out of reach."""
    cell_rows, cell_columns = (torch.arange(n) * c // n for n, c in zip(grid[:2], cells, strict=True))
    near_columns = (cell_columns[:, None] - torch.arange(cells[1])).abs() <= radius
    found = []
    for row in range(0, cells[0], radius + 1):
        inside = torch.nonzero((cell_rows >= row) & (cell_rows <= row + radius)).flatten()
        first, stop = max(row - radius, 0), min(row + 2 * radius + 1, cells[0])
        near_rows = (cell_rows[inside, None] - torch.arange(first, stop)).abs() <= radius
        near = (near_rows[:, None, :, None] & near_columns[None, :, None, :]).flatten(2).flatten(0, 1)
        patches = slice(int(inside[0]) * grid.width, (int(inside[-1]) + 1) * grid.width)
        unreachable = torch.zeros(near.shape).masked_fill_(~near, -torch.inf)
        found.append(Band(patches, slice(first * cells[1], stop * cells[1]), unreachable))
    return tuple(found)


@lru_cache(maxsize=256)
def cells_in_reach(grid: Grid, cells: Cells, radius: int) -> tuple[int, ...]:
    """Of each patch, the number of cells that it may belong to."""
    return tuple(count for band in bands(grid, cells, radius) for count in (band.unreachable == 0).sum(1).tolist())


Weights = Sequence[Tensor]
"""Of each band, what its patches and its cells have to do with each other: [B, patches, cells]."""


def means(weights: Weights, x_BND: Tensor, at: Sequence[Band], num_cells: int) -> Tensor:
    """For each cell the weighted mean of the patches around it: [B, cells, D]."""
    totals = x_BND.new_zeros(len(x_BND), num_cells)
    sums = x_BND.new_zeros(len(x_BND), num_cells, x_BND.shape[2])
    for band, weights_Bnm in zip(at, weights, strict=True):
        totals[:, band.cells] += weights_Bnm.sum(1)
        sums[:, band.cells].baddbmm_(weights_Bnm.transpose(1, 2), x_BND[:, band.patches])
    return sums / totals.clamp_min(1e-12)[..., None]


def spread(weights: Weights, s_BMD: Tensor, at: Sequence[Band]) -> Tensor:
    """For each patch the weighted sum of the cells around it: [B, patches, D]."""
    return torch.cat([w_Bnm @ s_BMD[:, band.cells] for band, w_Bnm in zip(at, weights, strict=True)], dim=1)


def spread_onto(x_BND: Tensor, weights: Weights, s_BMD: Tensor, at: Sequence[Band]) -> None:
    """Add to each patch, in place, the weighted sum of the cells around it."""
    for band, w_Bnm in zip(at, weights, strict=True):
        x_BND[:, band.patches].baddbmm_(w_Bnm, s_BMD[:, band.cells])


def strongest(weights: Weights, at: Sequence[Band]) -> Tensor:
    """For each patch the cell of the largest weight: int64 [B, patches]."""
    return torch.cat([w_Bnm.argmax(2) + band.cells.start for band, w_Bnm in zip(at, weights, strict=True)], dim=1)
