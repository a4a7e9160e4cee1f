"""Which layers reduce and by how much, from settings; and budgets as counts of patches in each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from stepwell.models.fields import ConfigError, positive
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import LayerTokens, Schedule


@lru_cache(maxsize=1024)
def profile_schedule(profile: tuple[float, ...], grid: Grid, budget: float) -> Schedule:
    """The largest shares that are proportional to ``profile`` and within the budget: by bisection over the counts."""
    left = int(budget * len(profile) * grid.num_tokens + 1e-9) - len(profile) * grid.num_prefix
    low, high = 0, max(1, math.ceil(grid.num_patches / min(profile, default=1.0)))
    factors = 64  # finer than a patch, so that few tokens of the budget are left
    low, high = low * factors, high * factors
    while low < high:
        middle = (low + high + 1) // 2
        if sum(_counts(profile, grid, middle / factors)) <= left:
            low = middle
        else:
            high = middle - 1
    counts = [max(count, 1) for count in _counts(profile, grid, low / factors)]
    return tuple(LayerTokens(count + grid.num_prefix, count + grid.num_prefix) for count in counts)


def _counts(profile: Sequence[float], grid: Grid, factor: float) -> list[int]:
    return [min(grid.num_patches, int(factor * weight)) for weight in profile]


def read_profile(where: str, settings: Mapping[str, Any], num_layers: int) -> tuple[float, ...]:
    """The field ``profile`` of the settings that ``where`` names; absent = all alike. Raises ConfigError."""
    profile = settings.get("profile", [1.0] * num_layers)
    if not isinstance(profile, (list, tuple)) or len(profile) != num_layers:
        raise ConfigError(f"{where}.profile: expected {num_layers} numbers, one a layer, got {profile!r}")
    weights = tuple(positive(f"{where}.profile[{i}]", weight) for i, weight in enumerate(profile))
    if any(later > earlier for earlier, later in pairwise(weights)):
        raise ConfigError(f"{where}.profile: no number may be larger than the one before, got {profile!r}")
    return weights


def read_layers(where: str, settings: Mapping[str, Any], num_layers: int, default: Sequence[int]) -> tuple[int, ...]:
    """The field ``before`` of the settings that ``where`` names: ascending layers. Raises ConfigError."""
    before = settings.get("before", list(default))
    whole = isinstance(before, (list, tuple)) and all(type(layer) is int for layer in before)
    if not whole or not before or list(before) != sorted(set(before)) or not 0 <= before[0] <= before[-1] < num_layers:
        raise ConfigError(
            f"{where}.before: expected ascending layers in 0..{num_layers - 1}, got {before!r}; correct it"
        )
    return tuple(before)
