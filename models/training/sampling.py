"""Which sub-networks one optimiser step trains (SortedNet, arXiv 2309.00255; SoFT, arXiv 2309.08968).

A step accumulates the gradients of ``micro_batches`` sampled widths. One forward at a width passes every depth on its
way, so each micro-batch also trains a few sampled exits through the shared norm and head. The full network is in
every step: its quality must suffer least.

The draws depend on seed and step only, never on what ran before: a resumed run draws what the whole run would have.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from stepwell.models.ladder import Architecture, SubNetwork
from stepwell.models.training.config import NestedConfig


@dataclass(frozen=True)
class SampledNetworks:
    """The sub-networks one micro-batch trains: all of one FFN width, one forward."""

    width: int
    """FFN channels of every layer."""
    exit_depths: tuple[int, ...]
    """Ascending depths trained beside the full depth."""


def sample_networks(config: NestedConfig, step: int) -> list[SampledNetworks]:
    """The micro-batches of one optimiser step; the first ones at full width."""
    if config.sampling == "plain":
        return [SampledNetworks(config.ffn_channels, ())] * config.micro_batches
    draw = random.Random(f"{config.seed}:{step}")
    num_full = max(1, round(config.micro_batches * config.full_width_share))
    smaller = _without_repeats(draw, config.ffn_widths[:-1] or config.ffn_widths, config.micro_batches - num_full)
    widths = [config.ffn_channels] * num_full + smaller
    return [SampledNetworks(width, _exits(draw, config)) for width in widths]


def rectangle(architecture: Architecture, depth: int, width: int) -> SubNetwork:
    """The sub-network of the first ``depth`` layers with ``width`` FFN channels each and all attention heads."""
    rest = architecture.num_layers - depth
    return SubNetwork((architecture.num_kv_groups,) * depth + (0,) * rest, (width,) * depth + (0,) * rest)


def _without_repeats(draw: random.Random, choices: tuple[int, ...], count: int) -> list[int]:
    """``count`` draws, each choice at most once more often than any other."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += draw.sample(choices, min(len(choices), count - len(drawn)))
    return drawn


def _exits(draw: random.Random, config: NestedConfig) -> tuple[int, ...]:
    return tuple(sorted(draw.sample(range(1, config.num_layers), config.num_exits)))
