"""The promise: floating point operations, counted by torch itself."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers import TRAINING_FREE
from stepwell.models.vit.tally import flops

SHAPE = (3, 48, 48)
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
