"""A trained vision transformer as a model directory: weights, ladders, and the measurements behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell.models.ladder import LADDER_FILE, Reduction
from stepwell.models.training.publish import EVALUATION_FILE
from stepwell.models.training.vision.config import DenseConfig, RoutedConfig, SupernetConfig
from stepwell.models.training.vision.evaluate import accuracy, accuracy_by_depth, describe, held_out_scenes
from stepwell.models.training.vision.levels import reducer_ladders, supernet_ladders
from stepwell.models.training.vision.scenes import MEAN, SCENE_SIDE, STD, Scenes
from stepwell.models.vit.loading import save_vit
from stepwell.models.vit.model import ViT

REDUCERS = ("route", "slim", "merge", "downsample")
"""Those of them that a model has are measured."""
BUDGETS = (0.2, 0.25, 0.33, 0.4, 0.5, 0.6, 0.75, 1.0)


def write_routed(config: RoutedConfig, vit: ViT, folder: Path) -> Path:
    """Write ``folder`` (made if absent), with a ladder for every reducer, and return it."""
    scenes = held_out_scenes(config.seed, config.num_held_out)
    found = measure_budgets(vit, scenes)
    data = describe(config.seed, config.num_held_out)
    top1 = {name: {f"{budget:g}": value for budget, value in row.items()} for name, row in found.items()}
    _write(config, vit, folder, reducer_ladders(found, data), {"data": data, "top1": top1})
    return folder


def write_supernet(config: SupernetConfig, vit: ViT, folder: Path) -> Path:
    """Write ``folder`` (made if absent), with ladders through all sub-networks, and return it."""
    scenes = held_out_scenes(config.seed, config.num_held_out)
    found = {
        (depth, channels, heads): value
        for channels in config.ffn_widths
        for heads in config.heads
        for depth, value in accuracy_by_depth(vit, scenes, channels, heads, config.depths).items()
    }
    data = describe(config.seed, config.num_held_out)
    top1 = {"x".join(map(str, dimensions)): value for dimensions, value in sorted(found.items())}
    _write(config, vit, folder, supernet_ladders(found, vit.config, data), {"data": data, "top1": top1})
    return folder


def measure_budgets(vit: ViT, scenes: Scenes) -> dict[str, dict[float, float]]:
    """Top-1 accuracy of every reducer at every budget of the ladders."""
    full = accuracy(vit, scenes)
    return {
        name: {b: full if b == 1.0 else accuracy(vit, scenes, reduction=Reduction(name, b)) for b in BUDGETS}
        for name in REDUCERS
        if name in vit.reducers
    }


def _write(config: DenseConfig, vit: ViT, folder: Path, ladders: Any, evaluation: Mapping[str, Any]) -> None:
    save_vit(folder, vit, config.hf_config())
    preprocessor = {
        "do_resize": True,
        "size": {"height": SCENE_SIDE, "width": SCENE_SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
        "image_processor_type": "ViTImageProcessor",
    }
    recipe = {"recipe": config.to_json()}
    for name, document in (
        ("preprocessor_config.json", preprocessor),
        (EVALUATION_FILE, {**evaluation, **recipe}),
        (LADDER_FILE, ladders),
    ):
        (folder / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
