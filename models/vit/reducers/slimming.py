"""``slim``: learned slots read all patches and go on in their place (SiT: Zong et al. 2022, arXiv 2111.12624).

The token slimming module: with X [N, C] the patches, A = softmax over the patches of s * W2 GELU(W1 LN(X)), W1: C ->
C/2, W2: C/2 -> N', s a learned number; X' = A^T X are N' tokens that the layers after it run. Prefix tokens bypass it.

In SiT N' is a constant of the checkpoint. Here the module is nested: a slot is a row of W2, each row's soft-max is its
own, so the first n rows are a module of n slots. Training draws n; serving takes it from the budget. Patches have no
token of their own afterwards: for classification only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.fields import ConfigError, positive
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import LayerTokens, Pass, Reducer, Schedule, Trace
from stepwell.models.vit.reducers.profile import read_layers

if TYPE_CHECKING:
    from stepwell.models.vit.config import ViTConfig


class TokenSlimming(nn.Module):
    """One token slimming module with ``num_slots`` nested slots."""

    def __init__(self, size: int, num_slots: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps)
        self.fc1, self.fc2 = nn.Linear(size, size // 2), nn.Linear(size // 2, num_slots)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_BND: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
        """The first slots' tokens [B, num_slots, D], and what each takes from each patch [B, num_slots, N]."""
        hidden = F.gelu(self.fc1(self.norm(x_BND)))
        scores = F.linear(hidden, self.fc2.weight[:num_slots], self.fc2.bias[:num_slots])
        weights = (self.scale * scores).transpose(1, 2).softmax(-1)
        return weights @ x_BND, weights


class Slimming(Reducer):
    """See the module. ``config.json``::

    "reducers": {"slim": {"before": [1, 3], "ratio": 0.5}}

    ``before``: layers before which a module is; each makes ``ratio`` times as many tokens as the one before it, where
    the budget leaves no more.
    """

    restores_patches = False

    def __init__(self, config: ViTConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.before = read_layers("reducers.slim", settings, config.num_layers, default=[config.num_layers // 3])
        self.ratio = positive("reducers.slim.ratio", settings.get("ratio", 0.5))
        if self.ratio > 1.0:
            raise ConfigError(f"reducers.slim.ratio: expected a number in (0, 1], got {self.ratio:g}")
        size, slots = config.hidden_size, config.base_grid.num_patches
        self.num_slots = slots
        self.stages = nn.ModuleList(TokenSlimming(size, slots, config.norm_eps) for _ in self.before)

    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        stages = tuple(layer for layer in self.before if layer < num_layers)
        most = min(self.num_slots, grid.num_patches)
        counts = _slots(stages, self.ratio, most, grid, num_layers, budget)
        bounds = (0, *stages, num_layers)
        tokens = [grid.num_tokens, *(count + grid.num_prefix for count in counts)]
        return tuple(
            LayerTokens(number, number)
            for number, (first, end) in zip(tokens, pairwise(bounds), strict=True)
            for _ in range(first, end)
        )

    def own_products(self, grid: Grid, num_layers: int, budget: float) -> int:
        """Of each stage: both of its linear layers, and the patches' sums."""
        size, seen, total = self.hidden_size, grid.num_patches, 0
        for layer, tokens in enumerate(self.schedule(grid, num_layers, budget)):
            if layer in self.before:
                slots = tokens.attention - grid.num_prefix
                total += seen * (size * (size // 2) + (size // 2 + size) * slots)
                seen = slots
        return total

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        return _Slim(self, grid, self.schedule(grid, num_layers, budget))


class _Slim(Pass):
    def __init__(self, slimming: Slimming, grid: Grid, schedule: Schedule) -> None:
        super().__init__(grid)
        self.slimming, self.tokens = slimming, schedule
        self._origin_BMN: Tensor | None = None

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if layer not in self.slimming.before:
            return x_BTD
        stage = self.slimming.stages[self.slimming.before.index(layer)]
        assert isinstance(stage, TokenSlimming)
        prefix, patches = x_BTD[:, : self.grid.num_prefix], x_BTD[:, self.grid.num_prefix :]
        slots, weights = stage(patches, self.tokens[layer].attention - self.grid.num_prefix)
        self._origin_BMN = weights if self._origin_BMN is None else weights @ self._origin_BMN
        return torch.cat([prefix, slots], 1)

    def trace(self, num_items: int) -> Trace:
        """A patch belongs to the slot that took most of it."""
        if self._origin_BMN is None:
            return super().trace(num_items)
        owner = self._origin_BMN.argmax(1) + self.grid.num_prefix
        return Trace(owner, torch.ones_like(owner, dtype=torch.bool))


@lru_cache(maxsize=1024)
def _slots(
    stages: tuple[int, ...], ratio: float, most: int, grid: Grid, num_layers: int, budget: float
) -> tuple[int, ...]:
    """Slots of each stage: the most that the budget allows, at least one."""
    spans = [end - first for first, end in pairwise((*stages, num_layers))]
    full = grid.num_tokens * (stages[0] if stages else num_layers)
    left = int(budget * num_layers * grid.num_tokens + 1e-9) - full - grid.num_prefix * sum(spans)
    for first in range(math.ceil(most / ratio ** max(len(stages) - 1, 0)), 1, -1):
        counts = _chain(first, ratio, most, len(stages))
        if sum(count * span for count, span in zip(counts, spans, strict=True)) <= left:
            return counts
    return (1,) * len(stages)


def _chain(first: int, ratio: float, most: int, length: int) -> tuple[int, ...]:
    return tuple(min(most, max(1, round(first * ratio**k))) for k in range(length))
