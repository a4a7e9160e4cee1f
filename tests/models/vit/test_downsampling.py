"""Down-sampling: which neighbourhoods join, what members get back, and that nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from stepwell.models.fields import ConfigError
from stepwell.models.ladder import Reduction
from stepwell.models.one_shot import Item
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers.base import mean_share
from stepwell.models.vit.reducers.downsampling import Downsampling
from stepwell.models.vit.reducers.neighbourhoods import join_lowest, mean_scores, quarters
from stepwell.models.vit.tally import flops

NAME, SIDE = "downsample", 6
BASE = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 8 * SIDE,
    "patch_size": 8,
    "num_labels": 5,
}
EVERYWHERE = {"profile": [1.0, 0.8, 0.5, 0.4]}
BOTH_GATES = {"profile": [1.0, 0.8, 0.5, 0.4], "before": [1, 3]}


@pytest.fixture(scope="module")
def make(random_vit: Callable[[dict[str, Any]], ViT]) -> Callable[..., ViT]:
    """``(settings of the reducer, **fields of config.json) -> ViT`` with random weights."""
    return lambda down, **fields: random_vit({**BASE, **fields, "reducers": {"downsample": down}})


@pytest.fixture(scope="module")
def everywhere(make: Callable[..., ViT]) -> ViT:
    return make(EVERYWHERE).prepare_serving(0)


@pytest.fixture(scope="module")
def both_gates(make: Callable[..., ViT]) -> ViT:
    return make(BOTH_GATES).prepare_serving(0)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(5))


def join_one_by_one(scores: list[float], groups: list[int], num_left: int) -> list[int | None]:
    """Which token each of one image's goes on as (itself, or the one it joins), or None: one removal at a time."""
    members = {
        group: sorted((i for i, g in enumerate(groups) if g == group), key=lambda i: scores[i]) for group in groups
    }
    by_mean = sorted(members, key=lambda group: sum(scores[i] for i in members[group]) / len(members[group]))
    to: list[int | None] = list(range(len(scores)))
    removals = [(i, members[group][0]) for group in by_mean for i in members[group][1:]]
    for i, leader in removals[: len(scores) - num_left]:
        to[i] = leader
    for group in by_mean[: max(0, len(scores) - num_left - len(removals))]:
        for i in members[group]:
            to[i] = None
    return to


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_tokens=st.integers(1, 14))
def test_tokens_join_as_if_one_by_one(data: st.DataObject, num_tokens: int) -> None:
    num_left = data.draw(st.integers(1, num_tokens))
    batch = [
        (
            data.draw(st.permutations(range(num_tokens))),
            data.draw(st.lists(st.integers(0, 4), min_size=num_tokens, max_size=num_tokens)),
        )
        for _ in range(2)
    ]
    # Powers of different numbers: no two groups have the same mean.
    scores = [[(rank + 2.0) ** 1.37 for rank in ranks] for ranks, _ in batch]
    scores_BN, group_BN = torch.tensor(scores, dtype=torch.float64), torch.tensor([groups for _, groups in batch])
    means, counts = mean_scores(scores_BN, group_BN, 5)
    assert counts.sum(1).tolist() == [num_tokens] * 2
    found = join_lowest(means, group_BN, scores_BN, num_left)
    for image, (_, groups) in enumerate(batch):
        expected = join_one_by_one(scores[image], groups, num_left)
        left = found.left[image].tolist()
        assert left == sorted({to for to in expected if to is not None})
        to = [None if place < 0 else left[place] for place in found.to[image].tolist()]
        assert to == expected


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 1)])
def test_neighbourhoods_are_two_by_two(height: int, width: int) -> None:
    found = quarters(Grid(height, width, 1)).view(height, width)
    blocks = {(r // 2, c // 2): int(found[r, c]) for r in range(height) for c in range(width)}
    assert len(set(blocks.values())) == len(blocks)
    assert all(int(found[r, c]) == blocks[r // 2, c // 2] for r in range(height) for c in range(width))


def run_pass(
    vit: ViT, x_BTD: Tensor, budget: float, layer: Callable[[int, Tensor], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """What a pass makes of tokens where the layers are ``layer``; and each layer's owners of the patches."""
    reducer = vit.reducers[NAME]
    assert isinstance(reducer, Downsampling)
    way, owners = reducer.begin(vit.config.base_grid, 4, budget), []
    schedule = reducer.schedule(vit.config.base_grid, 4, budget)
    for index in range(4):
        x_BTD = way.before_layer(index, x_BTD)
        assert x_BTD.shape[1] == schedule[index].attention
        x_BTD = way.after_layer(index, layer(index, x_BTD))
        owners.append(way.trace(len(x_BTD)).owner)
    return x_BTD, owners


@pytest.mark.parametrize("kind", ["everywhere", "both_gates"])
@settings(max_examples=20, deadline=None)
@given(budget=st.floats(0.08, 0.999), seed=st.integers(0, 99))
def test_every_patch_gets_what_the_layers_it_ran_have_added(
    everywhere: ViT, both_gates: ViT, kind: str, budget: float, seed: int
) -> None:
    x_BTD = torch.randn(2, SIDE * SIDE + 1, 32, generator=torch.Generator().manual_seed(seed))
    vit = everywhere if kind == "everywhere" else both_gates
    found, owners = run_pass(vit, x_BTD, budget, lambda index, x: x + 2.0**index)
    ran = torch.stack([(owner >= 0) * 2.0**index for index, owner in enumerate(owners)]).sum(0)
    assert found.shape == x_BTD.shape
    assert_close(found[:, 1:], x_BTD[:, 1:] + ran[..., None], atol=1e-5, rtol=0)
    assert_close(found[:, 0], x_BTD[:, 0] + 15.0)
    assert torch.equal(found[:, 1:][ran == 0], x_BTD[:, 1:][ran == 0])


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_patches_that_nobody_chose_are_run_as_they_are(everywhere: ViT, budget: float) -> None:
    """A layer that leaves tokens alone gives every patch back; those alone in their token bit for bit."""
    x_BTD = torch.randn(2, SIDE * SIDE + 1, 32)
    found, owners = run_pass(everywhere, x_BTD, budget, lambda _, x: x)
    assert_close(found, x_BTD, atol=1e-6, rtol=0)
    for image in range(2):
        alone = [(owners[-1][image] == owner).sum() == 1 for owner in owners[-1][image]]
        assert torch.equal(found[image, 1:][torch.stack(alone)], x_BTD[image, 1:][torch.stack(alone)])


@pytest.mark.parametrize("budget", [0.35, 0.6])
def test_the_lowest_neighbourhoods_join(everywhere: ViT, budget: float) -> None:
    reducer, x_BTD = everywhere.reducers[NAME], torch.randn(2, SIDE * SIDE + 1, 32)
    assert isinstance(reducer, Downsampling)
    way = reducer.begin(everywhere.config.base_grid, 4, budget)
    way.before_layer(3, x_BTD)
    means = reducer.gates[3](x_BTD, 1)[:, quarters(everywhere.config.base_grid).argsort(stable=True)]
    for mean, owner in zip(means.unflatten(1, (-1, 4)).mean(2), way.trace(2).owner, strict=True):
        in_blocks = owner[quarters(everywhere.config.base_grid).argsort(stable=True)].view(-1, 4)
        sizes = torch.tensor([len(set(block.tolist())) for block in in_blocks])
        assert set(sizes.tolist()) <= {1, 2, 3, 4}
        assert (sizes[mean.argsort()].diff() >= 0).all(), "coarse ones first, one in part, then fine ones"
        assert ((sizes > 1) & (sizes < 4)).sum() <= 1


@settings(max_examples=12, deadline=None)
@given(budget=st.floats(0.46, 0.999), seed=st.integers(0, 99))
def test_members_that_are_equal_lose_nothing(make: Callable[..., ViT], budget: float, seed: int) -> None:
    """Attention in proportion to size: one token in place of four equal ones is the same network."""
    vit = make(EVERYWHERE).prepare_serving(0)
    vit.embeddings.position_embeddings[:, 1:] = vit.embeddings.position_embeddings[:, 1:2].clone()
    patches = torch.randn(3, SIDE // 2, 8, SIDE // 2, 8, generator=torch.Generator().manual_seed(seed))
    blocks = patches[:, :, None, :, :, None].expand(-1, -1, 2, -1, -1, 2, -1)
    image = blocks.reshape(3, 8 * SIDE, 8 * SIDE)
    full = vit.config.architecture.full
    whole, reduced = vit.run([Item(image, full), Item(image, full, Reduction(NAME, budget))], ["logits"])
    assert_close(reduced.tensors["logits"], whole.tensors["logits"], atol=2e-4, rtol=1e-4)
    assert reduced.tokens_kept <= budget * whole.tokens_kept + 0.5


def test_budget_1_is_the_plain_network(both_gates: ViT) -> None:
    wanted, full = ["logits", "last_hidden_state", "embedding"], both_gates.config.architecture.full
    for image in images():
        plain, whole = both_gates.run([Item(image, full), Item(image, full, Reduction(NAME, 1.0))], wanted)
        assert all(torch.equal(plain.tensors[name], whole.tensors[name]) for name in wanted)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.75])
def test_four_patches_cost_one(everywhere: ViT, budget: float) -> None:
    full, grid, reduction = everywhere.config.architecture.full, everywhere.config.base_grid, Reduction(NAME, budget)
    schedule = everywhere.schedule(full, reduction, grid)
    assert budget - 0.04 < mean_share(schedule, grid.num_tokens) <= budget
    counts = [tokens.ffn - 1 for tokens in schedule]
    for count, layer in zip(counts, everywhere.explain(Item(images()[0], full, reduction)), strict=True):
        owners = layer.owner[layer.owner >= 0].unique()
        assert len(owners) == count
        for owner in owners:
            rows, columns = (layer.owner == owner).nonzero().unbind(1)
            assert len(rows) <= 4
            assert len((rows // 2).unique()) == len((columns // 2).unique()) == 1


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.75])
def test_flops_are_those_that_torch_counts_and_the_gates(everywhere: ViT, budget: float) -> None:
    full, grid, reduction = everywhere.config.architecture.full, everywhere.config.base_grid, Reduction(NAME, budget)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        everywhere.run([Item(image, full, reduction) for image in images()], ["embedding"])
    counts = [SIDE * SIDE, *(tokens.ffn - 1 for tokens in everywhere.schedule(full, reduction, grid))]
    gates = sum(2 * before * (32 * 8 + 8) for before, after in pairwise(counts) if before > after)
    expected = flops(everywhere.config, full, reduction, (3, 8 * SIDE, 8 * SIDE))
    assert counter.get_total_flops() == len(images()) * (expected + gates)


def test_every_patch_is_classified(make_segmenter: Callable[..., ViT]) -> None:
    reducers = {"reducers": {"downsample": {"profile": [1.0, 0.6, 0.5]}}, "interpolate_pos_encoding": True}
    vit = make_segmenter("linear", reducers).prepare_serving(0)
    items = [
        Item(torch.randn(3, *size), vit.config.architecture.full, Reduction(NAME, budget))
        for size in ((48, 48), (40, 56), (8, 24))
        for budget in (0.3, 0.7)
    ]
    for item, output in zip(items, vit.run(items, ["logits"]), strict=True):
        (alone,) = vit.run([item], ["logits"])
        assert output.tensors["logits"].shape == (5, *item.data.shape[1:])
        assert_close(output.tensors["logits"], alone.tensors["logits"], atol=1e-4, rtol=1e-4)


def test_the_mean_of_the_patches_counts_all_of_them(make: Callable[..., ViT]) -> None:
    """A classifier that reads the mean of the patches (DINOv2) sees every patch, whether it joined or not."""
    vit = make(EVERYWHERE, model_type="dinov2", mlp_ratio=1.5).prepare_serving(0)
    item = Item(images()[0], vit.config.architecture.full, Reduction(NAME, 0.5))
    (output,) = vit.run([item], ["logits", "last_hidden_state"])
    hidden = output.tensors["last_hidden_state"]
    assert hidden.shape == (SIDE * SIDE + 1, 32)
    expected = vit.head.classifier(torch.cat([hidden[0], hidden[1:].mean(0)]))
    assert_close(output.tensors["logits"], expected)


@pytest.mark.parametrize(
    ("down", "problem"),
    [
        ({"before": [4]}, r"reducers\.downsample\.before: expected ascending layers in 0\.\.3, got \[4\]"),
        ({"before": []}, r"reducers\.downsample\.before: .* got \[\]"),
        ({"profile": [0.5, 1.0, 1.0, 1.0]}, r"reducers\.downsample\.profile: no number may be larger"),
        ({"scale": 4}, r"reducers\.downsample\.scale: unknown; known are before, hidden_size, profile"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Callable[..., ViT], down: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make(down)


@pytest.mark.parametrize("down", [EVERYWHERE, BOTH_GATES])
def test_training_without_noise_runs_what_serving_runs(make: Callable[..., ViT], down: dict[str, Any]) -> None:
    vit, reduction = make(down).train(), Reduction(NAME, 0.4)
    learning = vit(images(), reduction=reduction)["logits"]
    serving = vit.eval()(images(), reduction=reduction)["logits"]
    assert_close(learning, serving, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("down", [EVERYWHERE, BOTH_GATES])
def test_gates_learn_from_the_task_alone(make: Callable[..., ViT], down: dict[str, Any]) -> None:
    vit = make(down).train()
    vit(images(), reduction=Reduction(NAME, 0.4))["logits"].square().mean().backward()
    assert all(gate.fc2.weight.grad.abs().sum() > 0 for gate in vit.reducers[NAME].gates)


@pytest.mark.parametrize("budget", [0.45, 0.7])
def test_the_budget_loss_moves_the_mean_gate_to_the_budget(make: Callable[..., ViT], budget: float) -> None:
    vit = make(EVERYWHERE).train()
    reducer, reduction = vit.reducers[NAME], Reduction(NAME, budget)
    assert isinstance(reducer, Downsampling)
    with torch.no_grad():
        for gate in reducer.gates:
            gate.offset.fill_(3.0)
    optimiser, distances = torch.optim.Adam(reducer.parameters(), 0.1), []
    for _ in range(25):
        vit(images(), reduction=reduction)
        distance = torch.stack([record.mean_probability - record.share for record in reducer.records]).mean()
        optimiser.zero_grad()
        distance.square().backward()
        optimiser.step()
        distances.append(abs(float(distance.detach())))
    assert distances[0] > 0.1
    assert distances[-1] < 0.03
