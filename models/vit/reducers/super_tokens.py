"""``super``: layers run on super tokens sampled from the patches (SViT: Huang et al. 2023, arXiv 2211.11167).

The H x W patches x_i become h x w super tokens s_p: s = adaptive average pooling of x, then one iteration over the
3 x 3 cells around the one that a patch lies in::

    Q_ip = softmax_p(x_i . s_p / sqrt(D))       s_p = sum_i Q_ip x_i / sum_i Q_ip

(x and s layer-normed in the product, as SViT norms before it.) A few layers run on s, and what they add is mapped back:
``x_i + sum_p Q_ip (s'_p - s_p)``. SViT samples for every layer, and keeps the FFN on all patches; in a plain vision
transformer two thirds of the work are there, so the FFN runs on super tokens too, and without training what is averaged
once in a few layers loses less than what is averaged in each: at a budget of 0.75 the shipped models classify 0.52 and
0.56 of the scenes with four layers a sampling, 0.29 and 0.24 with one (by hand). No parameters; accuracy without
training for it is not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.fields import ConfigError, read_size
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
    spread_onto,
    strongest,
)

if TYPE_CHECKING:
    from stepwell.models.vit.config import ViTConfig


class SuperTokens(Reducer):
    """See the module. ``config.json`` may have ``"reducers": {"super": {"layers_per_sampling": 4}}``.

    Layers share two neighbouring grids, the finer one first, to meet the budget closely; where the grid changes, tokens
    are sampled anew.
    """

    def __init__(self, config: ViTConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        if unknown := sorted(settings.keys() - {"layers_per_sampling"}):
            raise ConfigError(f"reducers.super.{unknown[0]}: unknown; known is layers_per_sampling")
        self.layers_per_sampling = read_size(settings, "layers_per_sampling", 4)

    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        counts = [grid.num_prefix + rows * columns for rows, columns in _layer_cells(grid, num_layers, budget)]
        return tuple(LayerTokens(count, count) for count in counts)

    def own_products(self, grid: Grid, num_layers: int, budget: float) -> int:
        """Patches with the cells around them, three times a sampling: for shares, tokens and the way back."""
        layers = _layer_cells(grid, num_layers, budget)
        starts = _starts(layers, self.layers_per_sampling)
        sampled = [cells for cells, start in zip(layers, starts, strict=True) if start and cells != grid[:2]]
        return 3 * self.hidden_size * sum(sum(cells_in_reach(grid, cells, 1)) for cells in sampled)

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        return _Sampled(grid, _layer_cells(grid, num_layers, budget), self.layers_per_sampling)


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


def _starts(layer_cells: tuple[Cells, ...], layers_per_sampling: int) -> list[bool]:
    """Whether tokens are sampled before each layer."""
    starts: list[bool] = []
    since = 0
    for cells, before in zip(layer_cells, (None, *layer_cells), strict=False):
        starts.append(cells != before or since == layers_per_sampling)
        since = 1 if starts[-1] else since + 1
    return starts


CHUNK_BYTES = 1_250_000
"""Images are sampled so many at a time that their tokens take about this: what is read again is still in the cache."""


class _Sampled(Pass):
    def __init__(self, grid: Grid, layer_cells: tuple[Cells, ...], layers_per_sampling: int) -> None:
        super().__init__(grid)
        self.layer_cells, self._starts = layer_cells, [*_starts(layer_cells, layers_per_sampling), True]
        self._all_BTD: Tensor | None = None
        """The tokens as they were when they were sampled last, while layers run what was sampled."""
        self._sampled: list[tuple[Tensor, Weights]] = []
        """Of each few images, the super tokens as they were sampled, and the patches' shares in them."""
        self._bands: tuple[Band, ...] = ()

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if not self._starts[layer]:
            return x_BTD
        cells = self.layer_cells[layer]
        self._all_BTD, self._sampled = None, []
        if cells == self.grid[:2]:
            return x_BTD
        self._all_BTD, self._bands = x_BTD, bands(self.grid, cells, 1)
        self._sampled = [sample(few, self.grid, cells) for few in x_BTD.split(_images_at_a_time(x_BTD))]
        return torch.cat([x_BTD[:, : self.grid.num_prefix], torch.cat([tokens for tokens, _ in self._sampled])], dim=1)

    def after_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if self._all_BTD is None or not self._starts[layer + 1]:
            return x_BTD
        # In place: the packed rows that these are a view of were replaced by those of the super tokens.
        everything = self._all_BTD.clone() if torch.is_grad_enabled() else self._all_BTD
        self._all_BTD = None
        return self._map_back(everything, x_BTD)

    def restore(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if self._all_BTD is None else self._map_back(self._all_BTD.clone(), x_BTD)

    def _map_back(self, all_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        """All tokens, written in place, with what layers added to the super tokens."""
        num_prefix, first = self.grid.num_prefix, 0
        for before, shares in self._sampled:
            few = slice(first, first := first + len(before))
            spread_onto(all_BTD[few, num_prefix:], shares, x_BTD[few, num_prefix:] - before, self._bands)
        all_BTD[:, :num_prefix] = x_BTD[:, :num_prefix]
        return all_BTD

    def trace(self, num_items: int) -> Trace:
        if not self._sampled:
            return super().trace(num_items)
        owner = torch.cat([strongest(shares, self._bands) for _, shares in self._sampled]) + self.grid.num_prefix
        return Trace(owner, torch.ones_like(owner, dtype=torch.bool))


def _images_at_a_time(x_BTD: Tensor) -> int:
    return max(1, CHUNK_BYTES // (x_BTD[0].numel() * x_BTD.element_size()))


def sample(x_BTD: Tensor, grid: Grid, cells: Cells) -> tuple[Tensor, Weights]:
    """Super tokens [B, cells, D] of all tokens of a grid, and the shares of the patches around in each."""
    size, at = x_BTD.shape[2], bands(grid, cells, 1)
    # Without the prefix this would be a copy.
    normed, patches_BND = F.layer_norm(x_BTD, (size,))[:, grid.num_prefix :], x_BTD[:, grid.num_prefix :]
    pooled = (pool(normed, grid, cells) * size**-0.5).transpose(1, 2)
    logits = [
        torch.baddbmm(band.unreachable.to(pooled.dtype), normed[:, band.patches], pooled[:, :, band.cells])
        for band in at
    ]
    shares = [each.softmax(2) for each in logits]
    return means(shares, patches_BND, at, cells[0] * cells[1]), shares
