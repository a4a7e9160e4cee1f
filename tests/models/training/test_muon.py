"""Muon in float32 is torch's, to the rounding of bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from stepwell.models.training.muon import Float32Muon


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(8, 12), (12, 8), (8, 8), (8, 12)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_it_makes_the_updates_of_torch() -> None:
    ours, theirs = _parameters(), _parameters()
    optimisers = (
        Float32Muon(ours, lr=0.1, weight_decay=0.05),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            other.grad = mine.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=5e-3, rtol=0)


def test_a_parameter_without_gradient_stays() -> None:
    parameters = _parameters()
    before = parameters[0].detach().clone()
    Float32Muon(parameters, lr=0.1, weight_decay=0.05).step()
    assert torch.equal(parameters[0], before)
