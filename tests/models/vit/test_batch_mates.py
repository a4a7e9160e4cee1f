"""What an item gets does not depend on its batch-mates: mixes of sub-networks, reducers, budgets and image sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit.model import ViT

LAYERS, HEADS, CHANNELS = 3, 4, 48
REDUCERS = ("merge", "cluster", "super")


@st.composite
def subnets(draw: st.DrawFn) -> SubNetwork:
    heads = [draw(st.sampled_from([0, 1, 2, HEADS])) for _ in range(LAYERS)]
    channels = [draw(st.sampled_from([0, 7, 24, CHANNELS])) for _ in range(LAYERS)]
    depth = draw(st.integers(1, LAYERS))
    cut = [0] * (LAYERS - depth)
    return SubNetwork(tuple(heads[:depth] + cut), tuple(channels[:depth] + cut))


@st.composite
def items(draw: st.DrawFn) -> Item:
    height, width = draw(st.sampled_from([(48, 48), (48, 48), (32, 64), (8, 16)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 5)))
    subnet = draw(st.one_of(st.just(SubNetwork((HEADS,) * LAYERS, (CHANNELS,) * LAYERS)), subnets()))
    reduction = draw(
        st.one_of(
            st.none(), st.builds(Reduction, st.sampled_from(REDUCERS), st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]))
        )
    )
    return Item(torch.randn(3, height, width, generator=generator), subnet, reduction)


@pytest.fixture(scope="module", params=["ViTForImageClassification", "Dinov2ForImageClassification", "segmenter"])
def model(make_pair: Callable[..., Any], make_segmenter: Callable[..., ViT], request: pytest.FixtureRequest) -> ViT:
    if request.param == "segmenter":
        return make_segmenter("mask_transformer", {"interpolate_pos_encoding": True}).prepare_serving(1 << 24)
    return make_pair(request.param, extra={"interpolate_pos_encoding": True}).vit.prepare_serving(1 << 24)


@settings(max_examples=15, deadline=None)
@given(batch=st.lists(items(), min_size=2, max_size=6))
def test_an_item_gets_the_same_alone_or_in_any_mix(model: ViT, batch: list[Item]) -> None:
    wanted = list(model.config.outputs)
    together = model.run(batch, wanted)
    for item, output in zip(batch, together, strict=True):
        (alone,) = model.run([item], wanted)
        assert output.tokens_kept == alone.tokens_kept
        assert output.tensors.keys() == set(wanted)
        for name in wanted:
            assert_close(output.tensors[name], alone.tensors[name], atol=1e-5, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(item=items())
def test_budget_1_is_the_full_model_exactly(model: ViT, item: Item) -> None:
    wanted = list(model.config.outputs)
    (plain,) = model.run([Item(item.data, item.subnet)], wanted)
    for name in REDUCERS:
        (reduced,) = model.run([Item(item.data, item.subnet, Reduction(name, 1.0))], wanted)
        assert reduced.tokens_kept == plain.tokens_kept == model.config.num_tokens(item.data.shape)
        assert all(torch.equal(reduced.tensors[each], plain.tensors[each]) for each in wanted)


def test_every_reducer_changes_the_output_and_drops_tokens(model: ViT) -> None:
    image, full = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(1)), model.config.architecture.full
    (plain,) = model.run([Item(image, full)], ["logits"])
    for name in REDUCERS:
        (half,) = model.run([Item(image, full, Reduction(name, 0.5))], ["logits"])
        assert half.tokens_kept < plain.tokens_kept
        assert half.tensors["logits"].shape == plain.tensors["logits"].shape
        assert not torch.allclose(half.tensors["logits"], plain.tensors["logits"], atol=1e-3)
