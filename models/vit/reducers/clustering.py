"""``cluster``: patches are clustered on the way in and reconstructed on the way out (Liang et al. 2022, Expediting
large-scale vision transformers for dense prediction without fine-tuning, arXiv 2210.01035). No training.

After ``alpha`` layers the H x W patches x_i become h x w clusters s_p: s = adaptive average pooling of x, then kappa
times, over the clusters within a window around the cell that a patch lies in::

    Q_ip = softmax_p(-tau |x_i - s_p|^2)        s_p = sum_i Q_ip x_i / sum_i Q_ip

The remaining layers run on the clusters (s -> s'); then every patch gets back ``sum_p w_ip s'_p`` with
``w_ip = exp(-tau |x_i - s_p|^2)`` of its k nearest clusters (of those in its window), normalised to sum 1, where x and
s are those kept from depth alpha. (The authors' code divides by the L2 norm; the paper's formula is this one.)

Defaults are the paper's for Segmenter: kappa 5, window 5, tau 0.02, k 20. ``tau`` belongs to the scale of a model's
features: set it in ``config.json`` where another fits: ``"reducers": {"cluster": {"tau": 0.01}}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stepwell.models.fields import ConfigError, positive, read_size
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
    strongest,
)

if TYPE_CHECKING:
    from stepwell.models.vit.config import ViTConfig


@dataclass(frozen=True)
class ClusterSettings:
    """The method's constants."""

    num_iterations: int = 5
    """kappa."""
    window: int = 5
    """Cells a patch may belong to: so many by so many."""
    tau: float = 0.02
    num_nearest: int = 20
    """k: clusters that a patch is reconstructed from."""


class Clustering(Reducer):
    """See the module. Clusters live from depth alpha to the end; the budget moves alpha and the grid together."""

    def __init__(self, config: ViTConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        if unknown := sorted(settings.keys() - {"num_iterations", "window", "tau", "num_nearest"}):
            raise ConfigError(
                f"reducers.cluster.{unknown[0]}: unknown; known are num_iterations, num_nearest, tau, window"
            )
        self.settings = ClusterSettings(
            read_size(settings, "num_iterations", 5),
            read_size(settings, "window", 5),
            positive("reducers.cluster.tau", settings.get("tau", 0.02)),
            read_size(settings, "num_nearest", 20),
        )

    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        alpha, (rows, columns) = _point(grid, num_layers, budget)
        full, few = grid.num_tokens, grid.num_prefix + rows * columns
        return (LayerTokens(full, full),) * alpha + (LayerTokens(few, few),) * (num_layers - alpha)

    def own_products(self, grid: Grid, num_layers: int, budget: float) -> int:
        """Patches with the clusters in their windows: distances and means in each iteration, the last distances, and
        the reconstruction from the nearest."""
        _, cells = _point(grid, num_layers, budget)
        in_reach = cells_in_reach(grid, cells, self.settings.window // 2)
        nearest = sum(min(count, self.settings.num_nearest) for count in in_reach)
        return self.hidden_size * ((2 * self.settings.num_iterations + 1) * sum(in_reach) + nearest)

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        alpha, cells = _point(grid, num_layers, budget)
        return _Clusters(grid, self.settings, alpha, num_layers - 1, cells)


@lru_cache(maxsize=256)
def _points(grid: Grid, num_layers: int) -> tuple[tuple[int, int, Cells], ...]:
    """Tokens that all layers together run, alpha and cells, ascending: those in which, at a share b of the tokens,
    alpha is within one layer of b/2 of all (the paper's best point: 10 of 24 at 0.87)."""
    points = []
    for alpha in range(num_layers // 2 + 1):
        for rows, columns in nested_cells(grid):
            few = grid.num_prefix + rows * columns
            tokens = alpha * grid.num_tokens + (num_layers - alpha) * few
            if abs(alpha - tokens / grid.num_tokens / 2) <= 1:
                points.append((tokens, alpha, (rows, columns)))
    return tuple(sorted(points))


@lru_cache(maxsize=1024)
def _point(grid: Grid, num_layers: int, budget: float) -> tuple[int, Cells]:
    points, allowed = _points(grid, num_layers), budget * num_layers * grid.num_tokens
    within = [point for point in points if point[0] <= allowed] or [points[0]]
    return within[-1][1:]


class _Clusters(Pass):
    def __init__(self, grid: Grid, settings: ClusterSettings, alpha: int, last: int, cells: Cells) -> None:
        super().__init__(grid)
        self.settings, self.alpha, self.last, self.cells = settings, alpha, last, cells
        self._bands = bands(grid, cells, settings.window // 2)
        self._closeness: Weights | None = None

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if layer != self.alpha:
            return x_BTD
        prefix, patches = x_BTD[:, : self.grid.num_prefix], x_BTD[:, self.grid.num_prefix :]
        # Differences of squares lose in bfloat16 what they are to tell.
        exact = patches.to(torch.promote_types(patches.dtype, torch.float32))
        clusters, self._closeness = cluster(exact, self.grid, self.cells, self.settings)
        return torch.cat([prefix, clusters.to(prefix.dtype)], dim=1)

    def after_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        return self.restore(x_BTD) if layer == self.last else x_BTD

    def restore(self, x_BTD: Tensor) -> Tensor:
        if self._closeness is None or x_BTD.shape[1] == self.grid.num_tokens:
            return x_BTD
        prefix, clusters = x_BTD[:, : self.grid.num_prefix], x_BTD[:, self.grid.num_prefix :]
        clusters = clusters.to(self._closeness[0].dtype)
        patches = reconstruct(clusters, self._closeness, self._bands, self.settings.num_nearest).to(prefix.dtype)
        return torch.cat([prefix, patches], dim=1)

    def trace(self, num_items: int) -> Trace:
        if self._closeness is None:
            return super().trace(num_items)
        owner = strongest(self._closeness, self._bands) + self.grid.num_prefix
        return Trace(owner, torch.ones_like(owner, dtype=torch.bool))


def cluster(patches_BND: Tensor, grid: Grid, cells: Cells, settings: ClusterSettings) -> tuple[Tensor, Weights]:
    """Clusters [B, cells, D], and how close those around each patch are: -tau |x - s|^2 but for a term of the patch
    alone, which cancels in a softmax over clusters."""
    at = bands(grid, cells, settings.window // 2)
    clusters = pool(patches_BND, grid, cells)
    for _ in range(settings.num_iterations):
        weights = [logits.softmax(2) for logits in _closeness(patches_BND, clusters, at, settings.tau)]
        clusters = means(weights, patches_BND, at, cells[0] * cells[1])
    return clusters, _closeness(patches_BND, clusters, at, settings.tau)


def reconstruct(clusters_BMD: Tensor, closeness: Weights, at: Sequence[Band], num_nearest: int) -> Tensor:
    """Patches [B, patches, D]: weighted means of the ``num_nearest`` closest clusters around each."""
    weights = []
    for logits_Bnm in closeness:
        best, index = logits_Bnm.topk(min(num_nearest, logits_Bnm.shape[2]), dim=2)
        weights.append(torch.zeros_like(logits_Bnm).scatter(2, index, best.softmax(2)))
    return spread(weights, clusters_BMD, at)


def _closeness(x_BND: Tensor, s_BMD: Tensor, at: Sequence[Band], tau: float) -> Weights:
    norms, products = s_BMD.square().sum(2)[:, None], s_BMD.transpose(1, 2)
    return [
        (2.0 * (x_BND[:, band.patches] @ products[:, :, band.cells]) - norms[:, :, band.cells]) * tau
        + band.unreachable.to(x_BND.dtype)
        for band in at
    ]
