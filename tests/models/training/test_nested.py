"""Whole runs on the tiny recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepwell.models.loader import open_model
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.nested import train
from stepwell.models.training.progress import Progress


class StoppedError(Exception):
    """A run that is interrupted."""


def test_training_lowers_the_loss_of_every_sub_network_and_writes_a_model(recipe: NestedConfig) -> None:
    seen: list[Progress] = []
    folder = train(recipe, seen.append)
    assert [progress.step for progress in seen] == list(range(1, 21))
    last: dict[tuple[int, int], float] = {}
    for progress in seen:
        last |= progress.losses
    assert set(last) == {(depth, width) for depth in (1, 2, 3) for width in (16, 32)}
    untrained = max(seen[0].losses.values())
    assert all(loss < untrained - 1.0 for loss in last.values())
    assert seen[-1].eta_s == 0.0
    assert str(seen[-1]).startswith("step 20/20  d")
    loaded = open_model(str(folder))
    assert loaded.config.dtype is torch.bfloat16
    assert sorted(loaded.ladders.ladders) == ["default", "depth", "depth-w16", "width"]
    assert loaded.ladders.subnet("max") == loaded.config.architecture.full


def test_an_interrupted_run_ends_with_the_same_weights(recipe: NestedConfig, tmp_path: Path) -> None:
    whole = train(recipe)

    def interrupt(progress: Progress) -> None:
        if progress.step == 13:
            raise StoppedError

    broken = replace(recipe, output=tmp_path / "broken")
    with pytest.raises(StoppedError):
        train(broken, interrupt)
    steps: list[int] = []
    resumed = train(broken, lambda progress: steps.append(progress.step))
    assert steps == list(range(11, 21))
    name = "model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_before_the_decay_the_number_of_steps_changes_nothing(recipe: NestedConfig, tmp_path: Path) -> None:
    def losses(config: NestedConfig) -> list[object]:
        seen: list[object] = []
        train(config, lambda progress: seen.append(dict(progress.losses)))
        return seen[:10]

    assert losses(recipe) == losses(replace(recipe, output=tmp_path / "longer", num_steps=24))


def test_resuming_with_another_recipe_is_refused(recipe: NestedConfig) -> None:
    train(recipe)
    with pytest.raises(ValueError, match=r"learning_rate: the checkpoint .* got 0\.5"):
        train(replace(recipe, learning_rate=0.5))


def test_resuming_on_another_text_is_refused(recipe: NestedConfig, tmp_path: Path) -> None:
    train(recipe)
    other = tmp_path / "other"
    other.mkdir()
    for number in range(40):
        (other / f"file_{number}.py").write_text("other = 1\n" * 40, encoding="utf-8")
    with pytest.raises(ValueError, match="sources: the text differs"):
        train(replace(recipe, sources=other))


def test_a_run_leaves_only_safetensors_and_json(recipe: NestedConfig) -> None:
    train(recipe)
    suffixes = {file.suffix for file in recipe.output.rglob("*") if file.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_the_recipe_survives_json(recipe: NestedConfig) -> None:
    document = json.loads(json.dumps(recipe.to_json()))
    assert NestedConfig.from_json(document, recipe.output, recipe.sources) == recipe
    with pytest.raises(ValueError, match="temperature: not a field"):
        NestedConfig.from_json({**document, "temperature": 1}, recipe.output)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ffn_widths", (32, 16)),
        ("tokens_per_step", 100),
        ("num_exits", 3),
        ("sampling", "both"),
        ("num_steps", 0),
        ("exit_weight", 1.5),
    ],
)
def test_a_recipe_that_cannot_run_names_the_field(recipe: NestedConfig, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: .*{str(value).strip('()')}"):
        replace(recipe, **{field: value})
