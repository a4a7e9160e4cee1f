"""``super``: every layer runs on super tokens sampled from the patches (SViT: Huang et al. 2023, arXiv 2211.11167).

The H x W patches x_i become h x w super tokens s_p: s = adaptive average pooling of x, then one iteration over the
3 x 3 cells around the one that a patch lies in::

    Q_ip = softmax_p(x_i . s_p / sqrt(D))       s_p = sum_i Q_ip x_i / sum_i Q_ip

(x and s layer-normed in the product, as SViT norms before it.) The layer runs on s, and what it adds is mapped back:
``x_i + sum_p Q_ip (s'_p - s_p)``. SViT does so with attention only and keeps the FFN on all patches; in a plain vision
transformer two thirds of the work are there, so the FFN runs on super tokens too. No parameters; accuracy without
training for it is not the paper's.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import LayerTokens, Pass, Reducer, Schedule, Trace
from stepwell.models.vit.reducers.cells import (
    Band,
    Cells,
    Weights,
    bands,
    cells_in_reach,
    means,
    nested_cells,
    pool,
    spread,
    spread_onto,
    strongest,
)


class SuperTokens(Reducer):
    """See the module. Layers share two neighbouring grids, the finer one first, to meet the budget closely."""

    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        counts = [grid.num_prefix + rows * columns for rows, columns in _layer_cells(grid, num_layers, budget)]
        return tuple(LayerTokens(count, count) for count in counts)

    def own_products(self, grid: Grid, num_layers: int, budget: float) -> int:
        """Patches with the cells around them, in each layer three times: for shares, tokens and the way back."""
        sampled = [at for at in _layer_cells(grid, num_layers, budget) if at != (grid.height, grid.width)]
        return 3 * self.hidden_size * sum(sum(cells_in_reach(grid, cells, 1)) for cells in sampled)

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        return _Sampled(grid, _layer_cells(grid, num_layers, budget))


@lru_cache(maxsize=1024)
def _layer_cells(grid: Grid, num_layers: int, budget: float) -> tuple[Cells, ...]:
    allowed = budget * num_layers * grid.num_tokens
    cells = nested_cells(grid)
    counts = [grid.num_prefix + rows * columns for rows, columns in cells]
    at = max((i for i, count in enumerate(counts) if count * num_layers <= allowed), default=0)
    if at == len(cells) - 1:
        return (cells[at],) * num_layers
    num_finer = max(int((allowed - counts[at] * num_layers) // (counts[at + 1] - counts[at])), 0)
    return (cells[at + 1],) * num_finer + (cells[at],) * (num_layers - num_finer)


CHUNK_BYTES = 1_250_000
"""Images are sampled so many at a time that their tokens take about this: what is read again is still in the cache."""


class _Sampled(Pass):
    def __init__(self, grid: Grid, layer_cells: tuple[Cells, ...]) -> None:
        super().__init__(grid)
        self.layer_cells = layer_cells
        self._all_BTD: Tensor | None = None
        """The tokens as they came to the layer, if it runs super tokens."""
        self._sampled: list[tuple[Tensor, Weights]] = []
        """Of each few images, the super tokens that the layer runs, and the patches' shares in them."""
        self._bands: tuple[Band, ...] = ()

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        cells = self.layer_cells[layer]
        self._all_BTD, self._sampled = None, []
        if cells == (self.grid.height, self.grid.width):
            return x_BTD
        self._all_BTD, self._bands = x_BTD, bands(self.grid, cells, 1)
        patches = x_BTD[:, self.grid.num_prefix :]
        self._sampled = [sample(few, self.grid, cells) for few in patches.split(_images_at_a_time(patches))]
        parts = [tokens for tokens, _ in self._sampled]
        tokens = torch.cat(parts) if len(parts) > 1 else parts[0]
        return torch.cat([x_BTD[:, : self.grid.num_prefix], tokens], dim=1)

    def after_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if self._all_BTD is None:
            return x_BTD
        num_prefix, sizes = self.grid.num_prefix, [len(tokens) for tokens, _ in self._sampled]
        patches = self._all_BTD[:, num_prefix:].split(sizes)
        added = [
            after - before for after, (before, _) in zip(x_BTD[:, num_prefix:].split(sizes), self._sampled, strict=True)
        ]
        if torch.is_grad_enabled():
            shares = [shares for _, shares in self._sampled]
            moved = [p + spread(w, a, self._bands) for p, w, a in zip(patches, shares, added, strict=True)]
            return torch.cat([x_BTD[:, :num_prefix], torch.cat(moved)], dim=1)
        # In place: the packed rows that these are a view of were replaced by those of the super tokens.
        for few, (_, few_shares), few_added in zip(patches, self._sampled, added, strict=True):
            spread_onto(few, few_shares, few_added, self._bands)
        self._all_BTD[:, :num_prefix] = x_BTD[:, :num_prefix]
        return self._all_BTD

    def trace(self, num_items: int) -> Trace:
        if not self._sampled:
            return super().trace(num_items)
        owner = torch.cat([strongest(shares, self._bands) for _, shares in self._sampled]) + self.grid.num_prefix
        return Trace(owner, torch.ones_like(owner, dtype=torch.bool))


def _images_at_a_time(patches_BND: Tensor) -> int:
    return max(1, CHUNK_BYTES // (patches_BND[0].numel() * patches_BND.element_size()))


def sample(patches_BND: Tensor, grid: Grid, cells: Cells) -> tuple[Tensor, Weights]:
    """Super tokens [B, cells, D] and the shares of the patches around in each."""
    size, at = patches_BND.shape[2], bands(grid, cells, 1)
    normed = F.layer_norm(patches_BND, (size,))
    pooled = (pool(normed, grid, cells) * size**-0.5).transpose(1, 2)
    logits = [
        torch.baddbmm(band.unreachable.to(pooled.dtype), normed[:, band.patches], pooled[:, :, band.cells])
        for band in at
    ]
    shares = [each.softmax(2) for each in logits]
    return means(shares, patches_BND, at, cells[0] * cells[1]), shares
