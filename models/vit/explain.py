"""Where the patches of one image are in each layer: what was merged, skipped, dropped. For drawings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import Pass


@dataclass(frozen=True)
class LayerMap:
    """One layer, patch by patch."""

    owner: Tensor
    """int64 [grid height, grid width]: index of the token that the patch is (most) part of; patches of the same index
    share one. -1 = dropped: no token of this layer has any of it."""
    ran: Tensor
    """bool [grid height, grid width]: whether that token ran the layer (or skipped it)."""


def layer_map(way: Pass, grid: Grid) -> LayerMap:
    """The map of the layer that the first item of ``way`` ran last."""
    trace, shape = way.trace(1), (grid.height, grid.width)
    return LayerMap(trace.owner[0].reshape(shape).clone(), trace.ran[0].reshape(shape).clone())
