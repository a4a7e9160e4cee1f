"""AdamW with a warm-up and cosine schedule, and its state as plain named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stepwell.models.training.config import NestedConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(config: NestedConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to ``final_rate`` of the highest at the last step."""
    warmup = max(1.0, config.warmup_share * config.num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, config.num_steps - 1 - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_rate + (1.0 - config.final_rate) * cosine)


def make_optimiser(config: NestedConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); matrices decay, norm weights and biases do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def moments(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as ``exp_avg.NAME`` and ``exp_avg_sq.NAME`` for every parameter that was updated."""
    return {
        f"{moment}.{name}": optimiser.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimiser.state
        for moment in _MOMENTS
    }


def restore_moments(
    optimiser: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], step: int
) -> None:
    """The inverse of :func:`moments` after ``step`` updates. Raises KeyError for a parameter without its moments."""
    for name, parameter in model.named_parameters():
        state = {moment: tensors[f"{moment}.{name}"].clone() for moment in _MOMENTS}
        optimiser.state[parameter] = {"step": torch.tensor(float(step)), **state}
