"""The promise: floating point operations, counted by torch itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers import TRAINING_FREE
from stepwell.models.vit.tally import flops, reducer_flops

SHAPE = (3, 48, 48)
IN_PLACE = {torch.ops.aten.baddbmm_: lambda total, a, b, *_, out_shape=None, **__: 2 * math.prod(a) * b[2]}
"""Torch counts products that are added to a new tensor only."""
SUBNETS = [SubNetwork((4, 4, 4), (48, 48, 48)), SubNetwork((2, 0, 0), (48, 7, 0))]


@pytest.mark.parametrize("subnet", SUBNETS)
def test_flops_are_those_that_torch_counts(vit: ViT, subnet: SubNetwork) -> None:
    items = [Item(torch.zeros(SHAPE), subnet)] * 2
    # torch counts no attention of the CPU's own kernel, but that of plain products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        vit.run(items, ["embedding"])
    assert counter.get_total_flops() == 2 * flops(vit.config, subnet, None, SHAPE)


@pytest.mark.parametrize("reducer", TRAINING_FREE)
def test_flops_follow_the_budget(vit: ViT, reducer: str) -> None:
    full = vit.config.architecture.full
    counts = [flops(vit.config, full, Reduction(reducer, budget), SHAPE) for budget in (0.5, 0.7, 0.9, 1.0)]
    assert counts == sorted(set(counts))
    assert counts[-1] == flops(vit.config, full, None, SHAPE)
    assert counts[0] < 0.6 * counts[-1]


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("merge", 0.5),
        ("merge", 0.8),
        ("cluster", 0.2),
        ("super", 0.1),
        ("slim", 0.6),
        ("route", 0.5),
        ("downsample", 0.5),
    ],
)
def test_a_reducers_own_products_are_those_that_torch_counts(vit: ViT, name: str, budget: float) -> None:
    """Budgets at which clusters and super tokens are so few that every patch reaches all of them."""
    vit = ViT(replace(vit.config, reducer_settings={"slim": {}, "route": {}, "downsample": {}})).eval()
    full, point = vit.config.architecture.full, Reduction(name, budget)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter,
    ):
        vit.run([Item(torch.zeros(SHAPE), full, point)] * 2, ["embedding"])
    own = reducer_flops(vit.config, full, point, SHAPE)
    assert own > 0
    assert counter.get_total_flops() == 2 * (flops(vit.config, full, point, SHAPE) + own)
