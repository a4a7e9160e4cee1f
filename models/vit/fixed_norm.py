"""Batch norm of a trained network: a scale and a shift of each channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FixedBatchNorm(nn.Module):
    """Batch norm by the statistics in the checkpoint."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, channels, H, W]."""
        return F.batch_norm(x_BCHW, self.running_mean, self.running_var, self.weight, self.bias)
