"""Gates of tokens: a score, the probability that goes with it at a budget, what losses read of both; and reducers that
have one in every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.fields import read_size
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import Reducer, Schedule
from stepwell.models.vit.reducers.profile import profile_schedule, read_profile

if TYPE_CHECKING:
    from stepwell.models.vit.config import ViTConfig


class Gate(nn.Module):
    """Scores of tokens, and the probabilities that belong to them at a budget."""

    def __init__(self, size: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps)
        self.fc1, self.fc2 = nn.Linear(size, hidden), nn.Linear(hidden, 1)
        self.offset, self.slope = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))

    def forward(self, x_BTD: Tensor, num_prefix: int) -> Tensor:
        """Scores [B, N] of the tokens behind the prefix."""
        # A norm of the patches alone would copy them.
        scores: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x_BTD)[:, num_prefix:]))).squeeze(-1)
        return scores

    @property
    def products(self) -> int:
        """Multiply-adds for one token."""
        return self.fc1.in_features * self.fc1.out_features + self.fc2.in_features

    def probabilities(self, scores_BN: Tensor, share: float) -> Tensor:
        """Probability of running [B, N] where the layer runs that share of the patches, in (0, 1)."""
        logits: Tensor = scores_BN + self.offset + self.slope * math.log(share / (1.0 - share))
        return logits.sigmoid()


class GateRecord(NamedTuple):
    """What the gate of one layer said of the patches of a batch."""

    scores: Tensor
    """[B, N]."""
    mean_probability: Tensor
    share: float
    """Of these patches, that the layer runs."""
    patches: Tensor | None
    """int64 [B, N]: which patches of the image these are; None = all."""


class GatedReducer(Reducer):
    """A reducer that has a gate in every layer, and runs tokens in proportion to a profile."""

    def __init__(self, config: ViTConfig, settings: Mapping[str, Any], where: str) -> None:
        """``where`` names the settings; of them this reads ``profile`` and ``hidden_size``. Raises ConfigError."""
        super().__init__(config, settings)
        self.profile = read_profile(where, settings, config.num_layers)
        hidden = read_size(settings, "hidden_size", max(1, config.hidden_size // 4))
        self.gates = nn.ModuleList(Gate(config.hidden_size, hidden, config.norm_eps) for _ in range(config.num_layers))
        self.noise = 0.0
        """How much of a standard Gumbel difference is added to scores in training mode."""
        self.records: list[GateRecord] = []
        """In training mode, of the last run: what the gate of each layer that reduces said."""

    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        return profile_schedule(self.profile[:num_layers], grid, budget)

    def own_products(self, grid: Grid, num_layers: int, budget: float) -> int:
        """Of the gates that are asked, with the patches that they see."""
        schedule, total, before = self.schedule(grid, num_layers, budget), 0, grid.num_tokens
        for tokens, gate in zip(schedule, self.gates, strict=False):
            assert isinstance(gate, Gate)
            if tokens.attention < before:
                total += gate.products * (before - grid.num_prefix)
            before = tokens.attention if self.narrows else before
        return total

    @property
    def narrows(self) -> bool:
        """Whether tokens that were passed by once are seen by no later gate."""
        return True


def logistic_like(x: Tensor) -> Tensor:
    """As ``x``: differences of two Gumbel variables, of which one belongs to running and one to passing by."""
    return torch.rand_like(x).clamp(1e-6, 1.0 - 1e-6).logit()
