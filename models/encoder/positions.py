"""How attention sees where tokens are, where that is not by embeddings of positions: descriptions without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Convolution:
    """A convolution over neighbouring tokens beside the first layer (DeBERTa v2)."""

    kernel_size: int
    """Tokens; odd."""
    num_groups: int
    activation: str


@dataclass(frozen=True)
class RelativePositions:
    """Disentangled attention (He et al. 2021, arXiv 2006.03654, section 3.1): scores depend on content, and on content
    and the distance between query and key."""

    num_terms: int = 1
    """Kinds of scores that are summed; the sum is divided by ``sqrt(head_dim * num_terms)``."""
    span: int = 0
    """The table of distances has ``2 * span`` rows, its middle for distance 0; 0 = there is no table."""
    num_buckets: int = 0
    """Distances beyond half as many share rows, in logarithmic steps (DeBERTa v2); 0 = each has its own."""
    max_distance: int = 0
    """Where the logarithmic steps end."""
    content_to_position: bool = False
    position_to_content: bool = False
    shares_projections: bool = False
    """Distances are projected by the layers that project content."""
    table_norm: bool = False
    interleaved: bool = False
    """One product gives queries, keys and values, head by head; only queries and values have a bias (DeBERTa v1)."""
    convolution: Convolution | None = None
    enhanced_head: bool = False
    """The head for words is the one that DeBERTa was trained with, not the one that looks like BERT's."""

    @property
    def num_projections(self) -> int:
        """Layers of each attention that project distances and nothing else."""
        return 0 if self.shares_projections else self.content_to_position + self.position_to_content

    def table_rows(self, longest: int) -> Tensor:
        """Row of the table of each distance ``query - key`` from ``1 - longest`` to ``longest - 1``: int64
        [2 * longest - 1]."""
        distances = torch.arange(1 - longest, longest)
        steps = distances if self.num_buckets == 0 else distances.sign() * self._buckets(distances.abs())
        return (steps + self.span).clamp(0, 2 * self.span - 1)

    def _buckets(self, distances: Tensor) -> Tensor:
        near = self.num_buckets // 2
        # In float32 as in training: rounding decides which bucket a distance on the edge of two is in.
        scale = torch.log(torch.tensor((self.max_distance - 1) / near))
        far = torch.ceil(torch.log(distances.clamp(min=near) / near) / scale * (near - 1)) + near
        return torch.where(distances <= near, distances, far.long())


@dataclass(frozen=True)
class RotaryLayer:
    """Rotary attention of one layer."""

    theta: float
    """Base of the rotary angles."""
    window: int | None
    """How many tokens away a key may be; None = any."""


@dataclass(frozen=True)
class PlainRotary:
    """See :class:`~stepwell.models.layers.rotary.RotaryConfig`."""

    head_dim: int
    max_positions: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
