"""Whole runs of sorted training at tiny sizes, and how its ladders are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepwell.models.ladder import load_ladders
from stepwell.models.training.vision.config import SupernetConfig
from stepwell.models.training.vision.evaluate import accuracy, accuracy_by_depth, held_out_scenes
from stepwell.models.training.vision.levels import supernet_ladders
from stepwell.models.training.vision.sampling import all_dimensions, box, sample_dimensions
from stepwell.models.training.vision.student import new_student
from stepwell.models.training.vision.supernet import train
from stepwell.models.vit import read_config


def test_every_sub_network_gets_a_name_and_a_measured_quality(supernet: SupernetConfig) -> None:
    folder = train(supernet)
    config = read_config(folder)
    ladders = load_ladders(folder / "ladder.json", config.architecture).ladders
    named = {level.subnet for name, ladder in ladders.items() if name != "default" for level in ladder.levels}
    assert named == {box(config.architecture, dimensions) for dimensions in all_dimensions(supernet)}
    assert set(ladders) == {"default", *(f"w{w}-h{h}" for w in (8, 16) for h in (1, 2))}
    assert all(level.metric is not None for ladder in ladders.values() for level in ladder.levels)
    assert ladders["default"].levels[-1].subnet == config.architecture.full


def test_an_interrupted_run_ends_with_the_same_weights(supernet: SupernetConfig, tmp_path: Path) -> None:
    whole = train(supernet)
    broken = replace(supernet, output=tmp_path / "broken")
    with pytest.raises(ZeroDivisionError):
        train(broken, lambda progress: 1 // (3 - progress.step))
    assert (train(broken) / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_one_run_measures_all_depths(supernet: SupernetConfig) -> None:
    vit, scenes = new_student(supernet, supernet.hf_config()).vit, held_out_scenes(0, 40)
    found = accuracy_by_depth(vit, scenes, 8, 1, (1, 2))
    for depth in (1, 2):
        assert found[depth] == accuracy(vit, scenes, box(vit.config.architecture, (depth, 8, 1)))


def test_the_shipped_recipe_samples_all_of_160_networks() -> None:
    config = SupernetConfig(output=Path())
    assert len(all_dimensions(config)) == 160
    steps = [sample_dimensions(config, step) for step in range(2000)]
    assert {networks[0] for networks in steps} == {(6, 288, 6)}
    assert {network for networks in steps for network in networks} == set(all_dimensions(config))
    assert steps[7] == sample_dimensions(config, 7)


def test_the_default_ladder_is_the_chain_that_wastes_least(supernet: SupernetConfig) -> None:
    config = new_student(supernet, supernet.hf_config()).vit.config
    found = dict.fromkeys(all_dimensions(supernet), 0.5) | {(1, 16, 1): 0.9, (1, 16, 2): 0.92, (2, 16, 2): 0.95}
    document = supernet_ladders(found, config, "by hand")
    levels = [(lv["layers"], lv["ffn"], lv["kv_groups"]) for lv in document["ladders"]["default"]["levels"]]
    assert levels == [(1, 8, 1), (1, 16, 1), (1, 16, 2), (2, 16, 2)]
    assert document["ladders"]["default"]["levels"][1]["quality"] == round(0.9 / 0.95, 4)


@pytest.mark.parametrize(("field", "value"), [("depths", (1,)), ("heads", (2, 1)), ("ffn_widths", ())])
def test_dimensions_that_are_not_nested_are_refused(supernet: SupernetConfig, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected ascending"):
        replace(supernet, **{field: value})


def test_a_sub_network_learns_what_is_its_own_only(supernet: SupernetConfig) -> None:
    from stepwell.models.training.vision.scenes import make_scenes

    student = new_student(supernet, supernet.hf_config())
    loss, _ = student.losses(make_scenes(0, "train", 0, 4), box(student.vit.config.architecture, (1, 8, 1)))
    loss.backward()
    first, second = student.vit.layers
    assert first.mlp.fc1.weight.grad[:8].abs().sum() > 0
    assert torch.count_nonzero(first.mlp.fc1.weight.grad[8:]) == 0
    assert torch.count_nonzero(first.attention.q_proj.weight.grad[8:]) == 0
    assert second.mlp.fc1.weight.grad is None
