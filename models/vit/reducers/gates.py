"""Gates of tokens: a score, the probability that goes with it at a budget, and what losses read of both."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate(nn.Module):
    """Scores of tokens, and the probabilities that belong to them at a budget."""

    def __init__(self, size: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps)
        self.fc1, self.fc2 = nn.Linear(size, hidden), nn.Linear(hidden, 1)
        self.offset, self.slope = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Scores [B, N]."""
        scores: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x_BND)))).squeeze(-1)
        return scores

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


def gather_rows(x_BTD: Tensor, index_BK: Tensor) -> Tensor:
    """Tokens [B, K, D] of these places."""
    return x_BTD.gather(1, index_BK[..., None].expand(-1, -1, x_BTD.shape[2]))


def logistic_like(x: Tensor) -> Tensor:
    """As ``x``: differences of two Gumbel variables, of which one belongs to running and one to passing by."""
    return torch.rand_like(x).clamp(1e-6, 1.0 - 1e-6).logit()
