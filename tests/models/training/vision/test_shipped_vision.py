"""The shipped vision transformers are what their files say they are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stepwell.models.ladder import Reduction
from stepwell.models.loader import ModelFiles, load_predictor, read_files
from stepwell.models.training.publish import EVALUATION_FILE
from stepwell.models.training.vision.config import RoutedConfig, SupernetConfig
from stepwell.models.training.vision.evaluate import accuracy, held_out_scenes
from stepwell.models.training.vision.sampling import box
from stepwell.models.vit.model import ViT

NUM_SCENES = 384
"""The standard error of an accuracy of 94 % is 1.2 points."""
MAX_BYTES = 4e6


@pytest.fixture(scope="module")
def scenes() -> Any:
    return held_out_scenes(0, NUM_SCENES)


def opened(name: str) -> tuple[ModelFiles, ViT, dict[str, Any]]:
    files = read_files(name)
    model = load_predictor(files)
    assert isinstance(model, ViT)
    return files, model, json.loads((files.path / EVALUATION_FILE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def routed() -> tuple[ModelFiles, ViT, dict[str, Any]]:
    return opened("routed-vit")


@pytest.fixture(scope="module")
def nested() -> tuple[ModelFiles, ViT, dict[str, Any]]:
    return opened("nested-vit")


@pytest.mark.parametrize(("name", "kind"), [("routed-vit", RoutedConfig), ("nested-vit", SupernetConfig)])
def test_it_is_small_and_its_recipe_is_the_default_one(name: str, kind: Any, tmp_path) -> None:
    files, _, evaluation = opened(name)
    assert sum(file.stat().st_size for file in files.path.rglob("*") if file.is_file()) < MAX_BYTES
    assert kind.from_json(evaluation["recipe"], tmp_path).to_json() == kind(tmp_path).to_json()


def test_budgets_from_a_quarter_on_by_three_reducers(routed) -> None:
    files, _, evaluation = routed
    assert files.ladders.default == "route"
    assert set(files.ladders.ladders) == {"route", "slim", "merge"}
    for name, ladder in files.ladders.ladders.items():
        budgets = [level.budget for level in ladder.levels]
        assert len(budgets) >= 6
        assert (budgets[0], budgets[-1]) == (0.25, 1.0)
        measured = evaluation["top1"][name]
        assert [level.metric for level in ladder.levels] == pytest.approx(
            [measured[f"{b:g}"] for b in budgets], abs=1e-4
        )
        assert all(
            level.quality == pytest.approx(min(1.0, level.metric / measured["1"]), abs=1e-3) for level in ladder.levels
        )


@pytest.mark.parametrize(("reducer", "budget"), [("route", 0.25), ("route", 0.5), ("slim", 0.4), ("route", 1.0)])
def test_what_the_ladder_claims_is_what_it_does(routed, scenes, reducer: str, budget: float) -> None:
    _, model, evaluation = routed
    found = accuracy(model, scenes, reduction=Reduction(reducer, budget) if budget < 1.0 else None)
    assert found == pytest.approx(evaluation["top1"][reducer][f"{budget:g}"], abs=0.05)


def test_routing_keeps_97_percent_of_the_accuracy_at_a_quarter_of_the_tokens(routed) -> None:
    top1 = routed[2]["top1"]["route"]
    assert top1["0.25"] >= 0.97 * top1["1"]
    assert top1["1"] > 0.9


def test_its_examples_are_recognised(routed) -> None:
    files, model, _ = routed
    examples = sorted((files.path / "examples").glob("*.png"))
    assert len(examples) == 12
    wanted = files.image_input
    pixels = [np.asarray(Image.open(path)).transpose(2, 0, 1) / 255.0 for path in examples]
    batch = torch.tensor((np.stack(pixels) - wanted.mean[0]) / wanted.std[0], dtype=torch.float32)
    with torch.inference_mode():
        found = model(batch, reduction=Reduction("route", 0.4))["logits"].argmax(1)
    names = [path.stem.partition("_")[2].replace("-", " ") for path in examples]
    assert sum(model.config.labels[i] == name for i, name in zip(found.tolist(), names, strict=True)) >= 11


def test_each_of_160_sub_networks_can_be_served_by_name(nested) -> None:
    files, model, evaluation = nested
    assert len(evaluation["top1"]) >= 160
    offered = {level.subnet: level.metric for ladder in files.ladders.ladders.values() for level in ladder.levels}
    for name, top1 in evaluation["top1"].items():
        depth, channels, heads = map(int, name.split("x"))
        assert offered[box(model.config.architecture, (depth, channels, heads))] == pytest.approx(top1, abs=1e-4)


@pytest.mark.parametrize("point", ["max", "w144-h4:2", "w36-h3:0"])
def test_sub_networks_are_as_good_as_they_claim(nested, scenes, point: str) -> None:
    files, model, _ = nested
    level = files.ladders.level(point)
    assert accuracy(model, scenes, level.subnet) == pytest.approx(level.metric, abs=0.08)
