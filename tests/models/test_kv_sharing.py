"""``shares_kv_with`` against the keys and values that two sub-networks really compute (properties)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepwell.models.ladder import SubNetwork
from stepwell.models.loader import LoadedModel, open_model

TOKENS = [7, 7, 30, 2, 59, 11, 7]
GROUPS = st.tuples(*[st.integers(0, 2)] * 3)
CHANNELS = st.tuples(*[st.sampled_from([0, 20, 48])] * 3)
SUBNETS = st.builds(SubNetwork, GROUPS, CHANNELS)


@st.composite
def related(draw: st.DrawFn) -> tuple[SubNetwork, SubNetwork]:
    """Two sub-networks that differ in few layers, so that both answers come up."""
    first, second = draw(SUBNETS), draw(SUBNETS)
    same = draw(st.integers(0, 3))
    second = SubNetwork(
        first.kv_groups[:same] + second.kv_groups[same:], first.ffn_channels[:same] + second.ffn_channels[same:]
    )
    return (first, second) if draw(st.booleans()) else (second, first)


@pytest.fixture(scope="module")
def model(make_checkpoint: Any) -> LoadedModel:
    return open_model(str(make_checkpoint().path))


def computed_kv(model: LoadedModel, loop_type: Any, subnet: SubNetwork) -> dict[int, Tensor]:
    """Keys and values [2, groups, tokens, head_dim] of each layer that has some."""
    loop = loop_type(model.decoder, page_tokens=32, num_pages=8)
    stream = loop.open(subnet)
    loop.step([(stream, TOKENS)])
    pools = torch.stack([loop.cache.keys, loop.cache.values])
    return {
        layer: pools[:, : subnet.kv_groups[layer], int(stream.pages.table[row, 0]), : len(TOKENS)]
        for row, layer in enumerate(subnet.kv_layers)
    }


@settings(deadline=None, max_examples=150)
@given(pair=related())
def test_shared_means_numerically_the_same(
    pair: tuple[SubNetwork, SubNetwork], model: LoadedModel, serving_loop: Any
) -> None:
    reader, provider = pair
    wanted = computed_kv(model, serving_loop, reader)
    offered = computed_kv(model, serving_loop, provider)
    are_equal = all(
        layer in offered
        and provider.kv_groups[layer] >= reader.kv_groups[layer]
        and bool((kv - offered[layer][:, : reader.kv_groups[layer]]).abs().max() < 1e-5)
        for layer, kv in wanted.items()
    )
    assert reader.shares_kv_with(provider) == are_equal


@given(first=SUBNETS, pair=related())
def test_sharing_is_a_preorder(first: SubNetwork, pair: tuple[SubNetwork, SubNetwork]) -> None:
    second, third = pair
    assert first.shares_kv_with(first)
    if first.shares_kv_with(second) and second.shares_kv_with(third):
        assert first.shares_kv_with(third)


@given(pair=related(), third=SUBNETS)
def test_containment_is_an_order_by_units(pair: tuple[SubNetwork, SubNetwork], third: SubNetwork) -> None:
    first, second = pair
    if first.contains(second):
        assert first.num_units > second.num_units or first == second
        assert first.depth >= second.depth
        assert set(first.kv_layers) >= set(second.kv_layers)
        assert not second.contains(third) or first.contains(third)


@given(full=SUBNETS, layers=st.integers(0, 3))
def test_the_first_layers_share_with_the_whole(full: SubNetwork, layers: int) -> None:
    rest = (0,) * (3 - layers)
    shallow = SubNetwork(full.kv_groups[:layers] + rest, full.ffn_channels[:layers] + rest)
    assert full.contains(shallow)
    assert shallow.shares_kv_with(full)
    assert full.shares_kv_with(shallow) == (full.kv_layers == shallow.kv_layers)
