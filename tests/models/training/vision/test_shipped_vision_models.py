"""The shipped vision transformers are what their files say they are."""

from __future__ import annotations

import itertools
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from stepwell.models.ladder import LadderSet, load_ladders
from stepwell.models.training.vision.config import DenseConfig, RoutedConfig, SupernetConfig
from stepwell.models.training.vision.evaluate import accuracy, held_out_scenes
from stepwell.models.training.vision.sampling import all_dimensions, box
from stepwell.models.training.vision.scenes import Scenes
from stepwell.models.training.vision.stencils import CLASSES
from stepwell.models.vit import load_model, read_config
from stepwell.models.vit.model import ViT

SAMPLE = 384
RECIPES: dict[str, type[DenseConfig]] = {"routed-vit": RoutedConfig, "nested-vit": SupernetConfig}


@lru_cache(maxsize=2)
def _open(name: str) -> tuple[Path, ViT, LadderSet, dict[str, Any]]:
    folder = Path(str(resources.files("stepwell.models"))) / "shipped" / name
    config = read_config(folder)
    vit = load_model(folder, config, torch.float32)
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return folder, vit.prepare_serving(0), load_ladders(folder / "ladder.json", config.architecture), evaluation


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return held_out_scenes(0, SAMPLE)


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_small_and_made_by_the_default_recipe(name: str) -> None:
    folder, vit, _, evaluation = _open(name)
    default = RECIPES[name](output=Path())
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5e6
    assert RECIPES[name].from_json(evaluation["recipe"], output=Path()) == default
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == default.hf_config()
    assert vit.config.labels == CLASSES


def test_routed_vit_offers_three_reducers_and_routing_is_the_best() -> None:
    _, _, ladders, evaluation = _open("routed-vit")
    assert set(ladders.ladders) == {"route", "slim", "merge"}
    assert ladders.default == "route"
    for name, ladder in ladders.ladders.items():
        assert len(ladder.levels) >= 6
        assert (ladder.levels[0].budget, ladder.levels[-1].budget) == (0.2, 1.0)
        measured = [evaluation["top1"][name][f"{level.budget:g}"] for level in ladder.levels]
        assert [level.metric for level in ladder.levels] == pytest.approx(measured, abs=1e-4)
    assert all(level.quality >= 0.97 for level in ladders.ladders["route"].levels)


def test_nested_vit_names_every_sub_network() -> None:
    _, vit, ladders, evaluation = _open("nested-vit")
    named = {
        level.subnet: level.metric
        for name, ladder in ladders.ladders.items()
        if name != "default"
        for level in ladder.levels
    }
    dimensions = all_dimensions(SupernetConfig(output=Path()))
    assert len(dimensions) == len(named) == 160
    for each in dimensions:
        stored = evaluation["top1"]["x".join(map(str, each))]
        assert named[box(vit.config.architecture, each)] == pytest.approx(stored, abs=1e-4)
    default = ladders.ladders["default"].levels
    assert all(small.quality < large.quality for small, large in itertools.pairwise(default))


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("routed-vit", "route:0"),
        ("routed-vit", "slim:2"),
        ("routed-vit", "merge:3"),
        ("routed-vit", "max"),
        ("nested-vit", "max"),
        ("nested-vit", "w108-h4:2"),
    ],
)
def test_the_weights_have_the_accuracy_that_the_ladder_claims(scenes: Scenes, name: str, point: str) -> None:
    _, vit, ladders, _ = _open(name)
    ladder, index = ladders.resolve(point)
    level = ladder.levels[index]
    assert level.metric is not None
    # Three standard errors of the sample.
    tolerance = 3 * (level.metric * (1 - level.metric) / SAMPLE) ** 0.5
    assert accuracy(vit, scenes, level.subnet, level.reduction) == pytest.approx(level.metric, abs=tolerance)


def test_gates_find_the_object(scenes: Scenes) -> None:
    from stepwell.models.ladder import Reduction
    from stepwell.models.one_shot import Item
    from stepwell.models.training.vision.scenes import normalise, patch_labels

    _, vit, _, _ = _open("routed-vit")
    on_object = patch_labels(scenes) != len(CLASSES)
    hits = []
    for image, mask in zip(normalise(scenes.pixels[:40]), on_object, strict=False):
        ran = vit.explain(Item(image, vit.config.architecture.full, Reduction("route", 0.25)))[-1].ran.flatten()
        hits.append(float((ran & mask).sum() / ran.sum()) / min(1.0, float(mask.sum() / ran.sum())))
    assert sum(hits) / len(hits) > 0.8


def test_transformers_loads_it_and_agrees(scenes: Scenes) -> None:
    from transformers import ViTForImageClassification

    from stepwell.models.training.vision.scenes import normalise

    folder, vit, _, _ = _open("nested-vit")
    reference = ViTForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = normalise(scenes.pixels[:4])
    with torch.no_grad():
        torch.testing.assert_close(vit(pixels)["logits"], reference(pixels).logits, atol=1e-4, rtol=1e-4)


def test_the_examples_of_routed_vit_are_recognised() -> None:
    from PIL import Image

    from stepwell.models.image_input import ImageInput
    from stepwell.models.ladder import Reduction
    from stepwell.models.one_shot import Item
    from stepwell.serving.images import decode_image

    folder, vit, _, _ = _open("routed-vit")
    wanted = ImageInput.from_directory(folder, *vit.config.image_size)
    files = sorted((folder / "examples").glob("*.png"))
    assert len(files) == 12
    assert all(Image.open(file).size == (64, 64) for file in files)
    images = [torch.from_numpy(decode_image(file.name, file.read_bytes(), wanted)) for file in files]
    items = [Item(image, vit.config.architecture.full, Reduction("route", 0.4)) for image in images]
    found = [int(output.tensors["logits"].argmax()) for output in vit.run(items, ["logits"])]
    names = [file.stem.partition("_")[2].replace("-", " ") for file in files]
    assert sum(CLASSES[i] == name for i, name in zip(found, names, strict=True)) >= 10
