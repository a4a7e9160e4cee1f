"""Whole runs of the two-stage recipe at tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepwell.models.ladder import LadderSet, Reduction, load_ladders
from stepwell.models.training.vision.config import RoutedConfig
from stepwell.models.training.vision.evaluate import accuracy, held_out_scenes
from stepwell.models.training.vision.publish import BUDGETS
from stepwell.models.training.vision.routed import reduced_loss, sample_budgets, train
from stepwell.models.training.vision.scenes import make_scenes
from stepwell.models.training.vision.steps import SceneProgress
from stepwell.models.training.vision.student import new_student
from stepwell.models.vit import load_model, read_config
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers.downsampling import Downsampling


class StoppedError(Exception):
    """A run that is interrupted."""


def _open(folder: Path) -> tuple[ViT, LadderSet]:
    config = read_config(folder)
    return load_model(folder, config, torch.float32), load_ladders(folder / "ladder.json", config.architecture)


def test_a_run_writes_a_model_whose_ladders_say_what_was_measured(routed: RoutedConfig) -> None:
    seen: list[SceneProgress] = []
    vit, ladders = _open(train(routed, seen.append))
    assert [(p.stage, p.step) for p in seen] == [(s, n) for s in ("dense", "reducers") for n in (1, 2, 3, 4)]
    assert str(seen[-1]).startswith("reducers 4/4  full=")
    assert set(ladders.ladders) == {"route", "slim", "merge"}
    scenes = held_out_scenes(routed.seed, routed.num_held_out)
    for name, ladder in ladders.ladders.items():
        assert [level.budget for level in ladder.levels] == list(BUDGETS)
        for level in ladder.levels[::3]:
            assert level.reduction is None or level.reduction.reducer == name
            assert level.metric == pytest.approx(accuracy(vit, scenes, reduction=level.reduction), abs=1e-3)
    files = {file.name for file in (routed.output / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "ladder.json", "evaluation.json", "preprocessor_config.json"}


def test_training_lowers_the_losses(routed: RoutedConfig) -> None:
    seen: list[SceneProgress] = []
    train(replace(routed, dense_steps=40, batch_size=16), seen.append)
    dense = [progress.losses["patches"] for progress in seen if progress.stage == "dense"]
    assert dense[-1] < dense[0] - 1.0
    assert all(torch.isfinite(torch.tensor(list(progress.losses.values()))).all() for progress in seen)


def test_gates_that_down_sample_are_trained_and_published(routed: RoutedConfig) -> None:
    seen: list[SceneProgress] = []
    vit, ladders = _open(train(replace(routed, downsample_before=(1,)), seen.append))
    assert set(ladders.ladders) == {"route", "slim", "merge", "downsample"}
    level = ladders.ladders["downsample"].levels[0]
    scenes = held_out_scenes(routed.seed, routed.num_held_out)
    assert level.metric == pytest.approx(accuracy(vit, scenes, reduction=level.reduction), abs=1e-3)
    assert any(name.startswith("downsample@") for name in seen[-1].losses)


def test_a_few_steps_bring_the_column_gates_to_the_budget_and_the_loss_down(routed: RoutedConfig) -> None:
    config = replace(routed, downsample_before=(0, 1), budget_weight=10.0, gate_weight=0.1, batch_size=16)
    student, scenes = new_student(config, config.hf_config()), make_scenes(0, "train", 0, 16)
    student.train()
    gates = student.vit.reducers["downsample"]
    assert isinstance(gates, Downsampling)
    for gate in gates.gates:
        gate.offset.data.fill_(3.0)  # as if nearly all stayed fine
    optimiser, losses, distances = torch.optim.Adam(student.parameters(), 0.05), [], []
    for _ in range(30):
        lesson = student.learn(scenes)
        loss = reduced_loss(config, student, scenes, lesson, Reduction("downsample", 0.5))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        probabilities = torch.stack([record.mean_probability for record in gates.records])
        wanted = torch.tensor([record.share for record in gates.records])
        distances.append(abs(float((probabilities.detach() - wanted).mean())))
    assert losses[-1] < losses[0] - 0.5
    assert distances[-1] < distances[0] / 2


@pytest.mark.parametrize("stage", ["dense", "reducers"])
def test_an_interrupted_run_ends_with_the_same_weights(routed: RoutedConfig, tmp_path: Path, stage: str) -> None:
    whole = train(routed)

    def interrupt(progress: SceneProgress) -> None:
        if (progress.stage, progress.step) == (stage, 3):
            raise StoppedError

    broken = replace(routed, output=tmp_path / "broken")
    with pytest.raises(StoppedError):
        train(broken, interrupt)
    steps: list[tuple[str, int]] = []
    resumed = train(broken, lambda progress: steps.append((progress.stage, progress.step)))
    assert steps[0] == (stage, 3)
    name = "model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_resuming_with_another_recipe_is_refused(routed: RoutedConfig) -> None:
    train(routed)
    with pytest.raises(ValueError, match=r"least_budget: the checkpoint .* got 0\.5"):
        train(replace(routed, least_budget=0.5))


def test_budgets_are_drawn_by_step_and_small_ones_more_often() -> None:
    config = RoutedConfig(output=Path())
    drawn = [sample_budgets(config, step)["route"] for step in range(400)]
    assert drawn == [sample_budgets(config, step)["route"] for step in range(400)]
    assert config.least_budget <= min(drawn) < max(drawn) < 1.0
    assert sum(budget < 0.5 for budget in drawn) > 220


def test_the_recipe_survives_json(routed: RoutedConfig) -> None:
    document = json.loads(json.dumps(routed.to_json()))
    assert RoutedConfig.from_json(document, routed.output) == routed
    with pytest.raises(ValueError, match="temperature: not a field"):
        RoutedConfig.from_json({**document, "temperature": 1}, routed.output)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 18), ("num_steps", 0), ("least_budget", 1.0), ("decay_share", 0.0)]
)
def test_a_recipe_that_cannot_run_names_the_field(routed: RoutedConfig, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: .*{value}"):
        replace(routed, **{field: value})
