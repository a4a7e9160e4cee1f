"""Sub-networks of a vision transformer: which there are, and which one optimiser step trains (SortedNet)."""

from __future__ import annotations

import random
from itertools import product

from stepwell.models.ladder import Architecture, SubNetwork
from stepwell.models.training.vision.config import SupernetConfig

Dimensions = tuple[int, int, int]
"""Layers, FFN channels and heads of a sub-network."""


def all_dimensions(config: SupernetConfig) -> list[Dimensions]:
    """Every sub-network that is trained, smallest first along each dimension."""
    return list(product(config.depths, config.ffn_widths, config.heads))


def box(architecture: Architecture, dimensions: Dimensions) -> SubNetwork:
    """The sub-network of the first layers with the first channels and heads of each."""
    depth, channels, heads = dimensions
    rest = (0,) * (architecture.num_layers - depth)
    return SubNetwork((heads,) * depth + rest, (channels,) * depth + rest)


def sample_dimensions(config: SupernetConfig, step: int) -> list[Dimensions]:
    """The networks one step trains: the full one first. The draws depend on seed and step alone."""
    draw = random.Random(f"{config.seed}:{step}")
    full = (config.num_layers, config.ffn_channels, config.num_heads)
    smaller = [dimensions for dimensions in all_dimensions(config) if dimensions != full]
    return [full, *draw.sample(smaller, config.smaller_networks)]
