"""Routing and slimming: what they run, what they leave alone, and what they learn from. Their weights are random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.fields import ConfigError
from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.heads import to_pixels
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers.base import Reducer, mean_share
from stepwell.models.vit.reducers.gates import GatedReducer
from stepwell.models.vit.reducers.slimming import TokenSlimming

PROFILE = [1.0, 0.6, 0.4, 0.4]
DOCUMENT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 8,
    "num_labels": 5,
    "reducers": {
        "route": {"profile": PROFILE},
        "slim": {"before": [1, 2]},
        "downsample": {"before": [0, 2], "profile": [1.0, 0.6, 0.4, 0.3]},
    },
}
MakeViT: TypeAlias = Callable[[dict[str, Any]], ViT]
NAMES = ("downsample", "route", "slim")
STOPPING = {**DOCUMENT, "reducers": {"route": {"profile": [1.0, 0.6, 0.4, 0.3], "early_stop": True}}}


@pytest.fixture(scope="module")
def trained(random_vit: MakeViT) -> ViT:
    return random_vit(DOCUMENT).prepare_serving(0)


@pytest.fixture(scope="module")
def stopping(random_vit: MakeViT) -> ViT:
    return random_vit(STOPPING).prepare_serving(0)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(5))


@given(
    name=st.sampled_from(NAMES),
    budgets=st.lists(st.floats(0.35, 0.999), min_size=2, max_size=2).map(sorted),
    layers=st.integers(1, 4),
    side=st.integers(3, 9),
)
def test_a_schedule_meets_its_budget_and_grows_with_it(
    random_vit: MakeViT, name: str, budgets: list[float], layers: int, side: int
) -> None:
    reducer, grid = random_vit(DOCUMENT).reducers[name], Grid(side, side, 1)
    assert isinstance(reducer, Reducer)
    small, large = (reducer.schedule(grid, layers, budget) for budget in budgets)
    assert len(small) == layers
    assert all(mine.attention <= theirs.attention for mine, theirs in zip(small, large, strict=True))
    for schedule, budget in zip((small, large), budgets, strict=True):
        least = reducer.schedule(grid, layers, 1e-6)
        assert mean_share(schedule, grid.num_tokens) <= max(budget, mean_share(least, grid.num_tokens)) + 1e-9


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("name", NAMES)
def test_little_of_a_budget_is_left_over(trained: ViT, name: str, budget: float) -> None:
    grid = trained.config.base_grid
    share = mean_share(
        trained.schedule(trained.config.architecture.full, Reduction(name, budget), grid), grid.num_tokens
    )
    least = mean_share(trained.reducers[name].schedule(grid, 4, 1e-6), grid.num_tokens)
    assert share == pytest.approx(max(budget, least), abs=0.04)


@pytest.mark.parametrize("early_stop", [False, True])
@given(data=st.data())
def test_what_an_item_gets_does_not_depend_on_its_batch_mates(
    trained: ViT, stopping: ViT, images: torch.Tensor, early_stop: bool, data: Any
) -> None:
    vit = stopping if early_stop else trained
    full, names = vit.config.architecture.full, ("route", "merge") if early_stop else (*NAMES, "merge")
    subnets = [full, SubNetwork((4, 4, 0, 0), (48, 24, 0, 0)), SubNetwork((2, 2, 2, 2), (16, 16, 16, 16))]
    reductions = [None, *(Reduction(name, b) for name in names for b in (0.3, 0.5, 0.8))]
    drawn = st.tuples(st.integers(0, 5), st.sampled_from(subnets), st.sampled_from(reductions))
    items = [Item(images[i], s, r) for i, s, r in data.draw(st.lists(drawn, min_size=2, max_size=6))]
    together = vit.run(items, ["logits"])
    for item, output in zip(items, together, strict=True):
        (alone,) = vit.run([item], ["logits"])
        torch.testing.assert_close(output.tensors["logits"], alone.tensors["logits"], atol=1e-5, rtol=1e-5)
        assert output.tokens_kept == alone.tokens_kept


def test_gates_that_keep_everything_are_the_plain_network(trained: ViT, images: torch.Tensor) -> None:
    with torch.no_grad():
        plain = trained(images)["logits"]
        assert torch.equal(trained(images, reduction=Reduction("route", 1.0))["logits"], plain)
        almost = trained.reducers["route"].schedule(trained.config.base_grid, 4, 0.9999)
        assert [tokens.attention for tokens in almost][:1] == [37], "the first layer has room for all"


def test_tokens_that_are_passed_by_stay_as_they_are(trained: ViT, images: torch.Tensor) -> None:
    way = trained.reducers["route"].begin(trained.config.base_grid, 4, 0.4)
    x_BTD = torch.randn(2, 37, 32)
    gathered = way.before_layer(2, x_BTD)
    count = way.tokens[2].attention
    assert gathered.shape == (2, count, 32)
    put_back = way.after_layer(2, gathered + 1.0)
    ran = way.trace(2).ran
    assert ran.sum(1).tolist() == [count - 1] * 2
    assert torch.equal(put_back[:, 1:][~ran], x_BTD[:, 1:][~ran])
    assert torch.equal(put_back[:, 1:][ran], x_BTD[:, 1:][ran] + 1.0)
    assert torch.equal(put_back[:, 0], x_BTD[:, 0] + 1.0)


def test_tokens_that_stop_stay_and_are_never_looked_at_again(stopping: ViT) -> None:
    way = stopping.reducers["route"].begin(stopping.config.base_grid, 4, 0.4)
    x_BTD, expected = torch.randn(2, 37, 32), torch.zeros(2, 36)
    going, before = x_BTD, torch.ones(2, 36, dtype=torch.bool)
    for layer in range(4):
        going = way.after_layer(layer, way.before_layer(layer, going) + 1.0)
        assert going.shape == (2, way.tokens[layer].attention, 32)
        ran = way.trace(2).ran
        assert torch.equal(ran, way.trace(2).owner >= 0)
        assert not (ran & ~before).any()
        expected, before = expected + ran, ran
    added = way.restore(going) - x_BTD
    torch.testing.assert_close(added[:, 1:], expected[..., None].expand(-1, -1, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(added[:, 0], torch.full((2, 32), 4.0), atol=1e-5, rtol=0)
    assert torch.equal(way.restore(going)[:, 1:][expected == 0], x_BTD[:, 1:][expected == 0])


def test_both_kinds_of_routing_run_the_same_tokens_until_one_comes_back(
    random_vit: MakeViT, trained: ViT, stopping: ViT, images: torch.Tensor
) -> None:
    shared = {name: value for name, value in trained.state_dict().items() if "slim" not in name and "down" not in name}
    stopping = random_vit(STOPPING).prepare_serving(0)
    stopping.load_state_dict(shared)
    full = trained.config.architecture.full
    back, done = (vit.explain(Item(images[0], full, Reduction("route", 0.4))) for vit in (trained, stopping))
    first = trained.reducers["route"].schedule(trained.config.base_grid, 4, 0.4)[0].attention
    assert back[0].ran.sum() == first - 1
    assert abs(int(done[0].ran.sum()) - first + 1) <= 2
    assert (done[0].ran & back[0].ran).sum() >= min(done[0].ran.sum(), back[0].ran.sum())


def test_the_highest_scores_run(trained: ViT) -> None:
    routing = trained.reducers["route"]
    way = routing.begin(trained.config.base_grid, 4, 0.4)
    x_BTD = torch.randn(2, 37, 32)
    way.before_layer(1, x_BTD)
    scores, ran = routing.gates[1](x_BTD, 1), way.trace(2).ran
    for row, mask in zip(scores, ran, strict=True):
        assert row[mask].min() > row[~mask].max()


def test_fewer_slots_are_the_first_of_more() -> None:
    stage, x_BND = TokenSlimming(16, 9, 1e-6), torch.randn(2, 12, 16)
    few, many = stage(x_BND, 3)[0], stage(x_BND, 9)[0]
    torch.testing.assert_close(few, many[:, :3])
    by_hand = (stage.scale * stage.fc2(torch.nn.functional.gelu(stage.fc1(stage.norm(x_BND))))).softmax(1)
    torch.testing.assert_close(many, by_hand.transpose(1, 2) @ x_BND)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_reducer_learns(random_vit: MakeViT, images: torch.Tensor, name: str) -> None:
    vit = random_vit(DOCUMENT).train()
    reducer = vit.reducers[name]
    loss = vit(images, reduction=Reduction(name, 0.35))["logits"].square().mean()
    if isinstance(reducer, GatedReducer):
        assert len(reducer.records) == 4
        loss = loss + torch.stack([record.mean_probability for record in reducer.records]).sum()
    loss.backward()
    for key, parameter in reducer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0 or key.endswith("fc2.bias"), key


@pytest.mark.parametrize("document", [DOCUMENT, STOPPING])
def test_a_gate_learns_from_the_task_alone(random_vit: MakeViT, images: torch.Tensor, document: dict[str, Any]) -> None:
    vit = random_vit(document).train()
    vit(images, reduction=Reduction("route", 0.35))["logits"].square().mean().backward()
    assert all(gate.fc2.weight.grad.abs().sum() > 0 for gate in vit.reducers["route"].gates)


@pytest.mark.parametrize("document", [DOCUMENT, STOPPING])
def test_training_without_noise_runs_what_serving_runs(
    random_vit: MakeViT, images: torch.Tensor, document: dict[str, Any]
) -> None:
    vit = random_vit(document).train()
    reduction = Reduction("route", 0.4)
    learning = vit(images, reduction=reduction)["logits"]
    serving = vit.eval()(images, reduction=reduction)["logits"]
    torch.testing.assert_close(learning, serving, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("reducers", "field"),
    [
        ({"route": {"profile": [1.0, 1.0]}}, r"reducers\.route\.profile: expected 4 numbers"),
        ({"route": {"profile": [0.5, 1.0, 1.0, 1.0]}}, r"no number may be larger"),
        ({"route": {"profile": [1.0, 1.0, 1.0, 0.0]}}, r"reducers\.route\.profile\[3\]"),
        ({"slim": {"before": [4]}}, r"reducers\.slim\.before: .* got \[4\]"),
        ({"slim": {"before": []}}, r"reducers\.slim\.before"),
        ({"slim": {"ratio": 2.0}}, r"reducers\.slim\.ratio"),
    ],
)
def test_settings_that_do_not_fit_are_refused(reducers: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        ViT(ViTConfig.from_hf({**DOCUMENT, "reducers": reducers}))


@pytest.mark.parametrize("budget", [0.4, 0.7])
@pytest.mark.parametrize("name", ["route", "stop", "downsample", "merge", "cluster", "super"])
def test_a_segmenter_sees_every_patch_as_the_layers_left_it(
    random_vit: MakeViT, images: torch.Tensor, name: str, budget: float
) -> None:
    head = {"task": "segment", "segmentation_head": {"type": "linear"}}
    vit = random_vit({**(STOPPING if name == "stop" else DOCUMENT), **head}).prepare_serving(0)
    point, config = Reduction("route" if name == "stop" else name, budget), vit.config
    items = [Item(image, config.architecture.full, point) for image in images[:2]]
    ((_, (left_BTD,)),) = vit.tap(items, [config.num_layers - 1])
    logits = vit.head(vit.norm(left_BTD)[:, config.num_prefix :], vit.linear)
    expected = to_pixels(logits, config.base_grid, config.patch_size)
    found = torch.stack([output.tensors["logits"] for output in vit.run(items, ["logits"])])
    torch.testing.assert_close(found, expected)
