"""The dense run: hidden states at early exits, gradients, batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepwell.models.decoder import Decoder
from stepwell.models.ladder import SubNetwork, parse_ladders
from stepwell.models.loader import LoadedModel, open_model

TOKENS = torch.randint(0, 61, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["llama", "mistral"])
def checkpoint(request: Any, make_checkpoint: Any) -> Any:
    fields = {"sliding_window": 4} if request.param == "mistral" else {"attention_bias": True, "mlp_bias": True}
    return make_checkpoint(request.param, **fields)


@pytest.fixture
def opened(checkpoint: Any) -> LoadedModel:
    return open_model(str(checkpoint.path))


def depth(decoder: Decoder, layers: int) -> SubNetwork:
    document = {"format": 1, "ladders": {"depth": {"levels": [{"layers": layers}]}}}
    return parse_ladders(document, decoder.config.architecture).subnet("depth:0")


def test_early_exits_are_the_depth_levels(opened: LoadedModel) -> None:
    decoder, full = opened.decoder, opened.ladders.subnet("max")
    with torch.no_grad():
        states = decoder.forward_dense(TOKENS, full, exit_depths=(0, 1, 2))
        alone = [decoder.forward_dense(TOKENS, depth(decoder, layers))[-1] for layers in range(4)]
    assert [tuple(state.shape) for state in states] == [(2, 11, 32)] * 4
    for state, expected in zip(states, alone, strict=True):
        torch.testing.assert_close(state, expected)


def test_rows_of_a_dense_batch_are_independent(opened: LoadedModel) -> None:
    decoder, full = opened.decoder, opened.ladders.subnet("max")
    with torch.no_grad():
        both = decoder.forward_dense(TOKENS, full)[-1]
        each = [decoder.forward_dense(row.unsqueeze(0), full)[-1] for row in TOKENS]
    torch.testing.assert_close(both, torch.cat(each))


@pytest.mark.parametrize(
    "level", [{}, {"layers": 2, "ffn": 10}, {"kv_groups": 1, "drop_ffn": [1]}], ids=["full", "shallow-narrow", "heads"]
)
def test_gradients_are_those_of_transformers(
    level: dict[str, Any], checkpoint: Any, opened: LoadedModel, cut: Any
) -> None:
    theirs = cut(checkpoint.reference, **level).requires_grad_(True)
    theirs(TOKENS).logits.square().mean().backward()
    decoder = opened.decoder.requires_grad_(True)
    document = {"format": 1, "ladders": {"cut": {"levels": [level]}}}
    subnet = parse_ladders(document, decoder.config.architecture).subnet("cut:0")
    decoder.logits(decoder.forward_dense(TOKENS, subnet)[-1]).square().mean().backward()
    ours = dict(decoder.named_parameters())
    for name, weight in theirs.named_parameters():
        mine = ours[name].grad
        if weight.grad is None:
            assert mine is None or not mine.any()
            continue
        assert mine is not None
        own = tuple(slice(size) for size in weight.shape)
        torch.testing.assert_close(mine[own], weight.grad, atol=1e-5, rtol=1e-4)
        rest = mine.clone()
        rest[own] = 0
        assert not rest.any(), f"{name}: a gradient outside the sub-network"


def test_training_may_follow_serving_in_one_process(opened: LoadedModel, serving_loop: Any) -> None:
    full, tokens = opened.ladders.subnet("max"), TOKENS[0].tolist()
    serving_loop(opened.decoder).replay(full, tokens, [6, 5])
    decoder = opened.decoder.requires_grad_(True)
    decoder.forward_dense(TOKENS[:1], full)[-1].sum().backward()
    decoder.forward_dense(TOKENS[:1, :6], full)[-1].sum().backward()
    assert all(weight.grad is not None for name, weight in decoder.named_parameters() if "lm_head" not in name)


def test_inner_gradients_of_all_exits_together(opened: LoadedModel) -> None:
    decoder = opened.decoder.requires_grad_(True)
    states = decoder.forward_dense(TOKENS, opened.ladders.subnet("max"), exit_depths=(1,))
    sum(decoder.logits(state).square().mean() for state in states).backward()
    together = {name: weight.grad.clone() for name, weight in decoder.named_parameters() if weight.grad is not None}
    decoder.zero_grad()
    for layers in (1, 3):
        decoder.logits(decoder.forward_dense(TOKENS, depth(decoder, layers))[-1]).square().mean().backward()
    for name, weight in decoder.named_parameters():
        torch.testing.assert_close(weight.grad, together[name], atol=1e-6, rtol=1e-4)
