"""Sub-networks are prefixes of heads and channels and left-out sub-layers of transformers' own model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from stepwell.models.ladder import Architecture, LadderError, Reduction, SubNetwork, parse_ladders
from stepwell.models.one_shot import Item

SUBNETS = [
    SubNetwork((4, 4, 0), (48, 48, 0)),
    SubNetwork((1, 2, 4), (48, 48, 48)),
    SubNetwork((4, 4, 4), (7, 48, 20)),
    SubNetwork((0, 4, 3), (48, 0, 11)),
    SubNetwork((0, 0, 0), (0, 0, 0)),
]


class _Nothing(nn.Module):
    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        return torch.zeros_like(x)


class _NoAttention(_Nothing):
    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        return torch.zeros_like(x), None


def cut(model: Any, subnet: SubNetwork, head_dim: int) -> Any:
    """``model`` of transformers with the units that ``subnet`` leaves out zeroed or removed."""
    small = copy.deepcopy(model)
    layers = small.vit.layers
    for layer, heads, channels in zip(layers, subnet.kv_groups, subnet.ffn_channels, strict=True):
        layer.attention.o_proj.weight[:, heads * head_dim :] = 0
        layer.mlp.fc2.weight[:, channels:] = 0
        if not heads:
            layer.attention = _NoAttention()
        if not channels:
            layer.mlp = _Nothing()
    return small


@pytest.mark.parametrize("subnet", SUBNETS)
def test_a_sub_network_is_the_model_without_its_other_units(make_pair: Callable[..., Any], subnet: SubNetwork) -> None:
    pair = make_pair("ViTForImageClassification")
    image = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(2))
    expected = cut(pair.reference, subnet, pair.vit.config.head_dim)(image[None]).logits[0]
    full = pair.vit.config.architecture.full
    alone, _, _ = pair.vit.run([Item(image, s) for s in (subnet, full, SUBNETS[1])], ["logits"])
    assert_close(alone.tensors["logits"], expected, atol=1e-4, rtol=1e-4)


def test_a_ladder_names_the_reducers_of_the_family(make_pair: Callable[..., Any]) -> None:
    architecture: Architecture = make_pair("ViTForImageClassification").vit.config.architecture
    levels = [{"budget": 0.4, "layers": 2, "quality": 0.8}, {"budget": 0.7}, {}]
    ladders = parse_ladders({"format": 1, "ladders": {"merge": {"reducer": "merge", "levels": levels}}}, architecture)
    assert ladders.ladders["merge"].levels[0].reduction == Reduction("merge", 0.4)
    with pytest.raises(LadderError, match=r"slim.*cluster, merge, super"):
        parse_ladders({"format": 1, "ladders": {"slim": {"reducer": "slim", "levels": levels}}}, architecture)


def test_tokens_kept_counts_the_sub_layers_that_ran(make_pair: Callable[..., Any]) -> None:
    vit = make_pair("ViTForImageClassification").vit
    image, half = torch.zeros(3, 48, 48), Reduction("merge", 0.5)
    subnet = SubNetwork((4, 0, 4), (48, 48, 0))
    (output,) = vit.run([Item(image, subnet, half)], ["logits"])
    first, second, third = vit.schedule(subnet, half, vit.config.base_grid)
    assert output.tokens_kept == round((first.attention + first.ffn + second.ffn + third.attention) / 4)
    (none,) = vit.run([Item(image, SUBNETS[-1], half)], ["logits"])
    assert none.tokens_kept == 37
