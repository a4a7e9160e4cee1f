"""What an operating point costs and keeps, by count: tokens and floating point operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.reducers.base import LayerTokens, Reducer, Schedule, build_reducers


def full_schedule(num_tokens: int, num_layers: int) -> Schedule:
    """Nothing reduced."""
    return (LayerTokens(num_tokens, num_tokens),) * num_layers


def tokens_kept(schedule: Schedule, subnet: SubNetwork, num_tokens: int) -> int:
    """Tokens of one item that a sub-layer ran, averaged over the sub-layers that ran, rounded; ``num_tokens`` if none
    did."""
    counts = [layer.attention for layer, heads in zip(schedule, subnet.kv_groups, strict=False) if heads]
    counts += [layer.ffn for layer, channels in zip(schedule, subnet.ffn_channels, strict=False) if channels]
    return round(sum(counts) / len(counts)) if counts else num_tokens


def flops(config: ViTConfig, subnet: SubNetwork, reduction: Reduction | None, shape: Sequence[int]) -> int:
    """Floating point operations (two a multiply-add) of the products of one image's embedding and layers.

    The rest (norms, activations, heads) is left out; what reducers themselves compute is :func:`reducer_flops`.
    Raises ConfigError as :meth:`~stepwell.models.vit.config.ViTConfig.grid`.
    """
    grid = config.grid(shape)
    schedule = full_schedule(grid.num_tokens, subnet.depth)
    if reduction is not None and reduction.budget < 1.0:
        schedule = _reducer(config, reduction.reducer).schedule(grid, subnet.depth, reduction.budget)
    matrices = 3 if config.gated_ffn else 2
    total = grid.num_patches * config.num_channels * config.patch_size**2 * config.hidden_size
    for tokens, heads, channels in zip(schedule, subnet.kv_groups, subnet.ffn_channels, strict=False):
        width = heads * config.head_dim
        total += tokens.attention * width * (4 * config.hidden_size + 2 * tokens.attention)
        total += tokens.ffn * channels * matrices * config.hidden_size
    return 2 * total


def reducer_flops(config: ViTConfig, subnet: SubNetwork, reduction: Reduction | None, shape: Sequence[int]) -> int:
    """Floating point operations of the products that the reducer's published method takes for one image.

    Raises ConfigError as :meth:`~stepwell.models.vit.config.ViTConfig.grid`.
    """
    grid = config.grid(shape)
    if reduction is None or reduction.budget >= 1.0:
        return 0
    return 2 * _reducer(config, reduction.reducer).own_products(grid, subnet.depth, reduction.budget)


def _reducer(config: ViTConfig, name: str) -> Reducer:
    with torch.device("meta"):
        reducer = build_reducers(config)[name]
    assert isinstance(reducer, Reducer)
    return reducer
