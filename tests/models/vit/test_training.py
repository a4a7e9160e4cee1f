"""The layers that serve are those that are trained: same outputs, and gradients that finite differences confirm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit.groups import Group
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers.base import Pass

POINTS: list[tuple[SubNetwork | None, Reduction | None]] = [
    (None, None),
    (SubNetwork((2, 4, 0), (48, 20, 0)), None),
    (None, Reduction("merge", 0.5)),
    (None, Reduction("cluster", 0.5)),
    (SubNetwork((4, 0, 3), (48, 48, 7)), Reduction("super", 0.5)),
]


@pytest.fixture(scope="module")
def trainee(make_pair: Callable[..., Any]) -> ViT:
    vit: ViT = make_pair("Dinov2ForImageClassification", layerscale_value=0.5).vit
    return vit.requires_grad_(True).double()


def images() -> Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize(("subnet", "reduction"), POINTS)
def test_what_is_trained_is_what_is_served(
    trainee: ViT, subnet: SubNetwork | None, reduction: Reduction | None
) -> None:
    trained = trainee(images(), subnet, reduction, ("logits", "embedding", "last_hidden_state"))
    items = [Item(image, subnet or trainee.config.architecture.full, reduction) for image in images()]
    for index, output in enumerate(trainee.run(items, list(trained))):
        for name, tensor in output.tensors.items():
            assert_close(tensor, trained[name][index].float())


@pytest.mark.parametrize(("subnet", "reduction"), POINTS)
def test_gradients_are_those_of_finite_differences(
    trainee: ViT, subnet: SubNetwork | None, reduction: Reduction | None
) -> None:
    def loss() -> Tensor:
        return trainee(images(), subnet, reduction)["logits"].square().mean()

    layer = trainee._layers()[0]
    weights = [layer.attention.v_proj.weight, layer.mlp.fc1.weight, trainee.embeddings.position_embeddings]
    gradients = torch.autograd.grad(loss(), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-6 * step
                values.append(loss())
                weight -= sign * 1e-6 * step
        slope = (values[0] - values[1]) / 2e-6
        assert_close((gradient * step).sum(), slope, atol=1e-6, rtol=1e-4)
        assert abs(float(slope)) > 1e-6


def test_mixed_sub_networks_can_be_trained_in_one_batch(trainee: ViT) -> None:
    """No span writes to what an earlier one needs for its gradient."""
    grid, full = trainee.config.base_grid, trainee.config.architecture.full
    small = SubNetwork((2, 2, 0), (20, 20, 0))
    groups = [Group(full, grid, None, Pass(grid), [0], grid.num_tokens)]
    groups.append(Group(small, grid, None, Pass(grid), [1], grid.num_tokens))
    weight = trainee._layers()[0].mlp.fc1.weight
    x_BTD = trainee.embeddings(images(), grid)
    mixed = trainee._run_layers(x_BTD.flatten(0, 1), groups)
    apart = torch.cat(
        [
            trainee._run_layers(x_BTD[i], [Group(s, grid, None, Pass(grid), [i], grid.num_tokens)])
            for i, s in ((0, full), (1, small))
        ]
    )
    assert_close(mixed, apart)
    (together,) = torch.autograd.grad(mixed.square().mean(), weight, retain_graph=True)
    assert_close(together, torch.autograd.grad(apart.square().mean(), weight)[0])
