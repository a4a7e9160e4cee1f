from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest

from stepwell.models.ladder import load_ladders
from stepwell.models.loader import open_model
from stepwell.serving.cli.ladder import units

SHIPPED = Path(str(resources.files("stepwell.models"))) / "shipped" / "nested-lm"


def test_json_lists_every_level_of_the_ladder_file(stepwell):
    ran = stepwell("ladder", "nested-lm", "--json")
    assert ran.status == 0
    document = ran.document
    stored = json.loads((SHIPPED / "ladder.json").read_text(encoding="utf-8"))
    assert document["default_ladder"] == stored["default"]
    assert document["quality_metric"] == stored["quality_metric"]
    found = {ladder["name"]: ladder for ladder in document["ladders"]}
    assert set(found) == set(stored["ladders"])
    for name, ladder in stored["ladders"].items():
        assert found[name]["kv"] == ladder["kv"]
        points = found[name]["points"]
        assert [p["name"] for p in points] == [f"{name}:{k}" for k in range(len(ladder["levels"]))]
        assert [p["quality"] for p in points] == [level["quality"] for level in ladder["levels"]]
        assert [p["metric"] for p in points] == [level["metric"] for level in ladder["levels"]]


def test_units_parameters_and_cost_are_those_of_the_sub_networks(stepwell):
    document = stepwell("ladder", "nested-lm", "--json").document
    loaded = open_model("nested-lm")
    ladders = load_ladders(SHIPPED / "ladder.json", loaded.config.architecture)
    for ladder in document["ladders"]:
        parameters = [point["parameters"] for point in ladder["points"]]
        assert parameters == sorted(set(parameters)), "each level runs more than the one before"
        for point in ladder["points"]:
            subnet = ladders.subnet(point["name"])
            assert point["layers"] == subnet.depth
            assert point["ffn_channels"] == list(subnet.ffn_channels)
            assert point["kv_groups"] == list(subnet.kv_groups)
            assert point["cost"] == pytest.approx(point["parameters"] / document["parameters"])
    top = document["ladders"][0]["points"][-1]
    in_matrices = sum(weight.numel() for weight in loaded.decoder.parameters() if weight.ndim == 2)
    assert top["parameters"] == in_matrices, "the head is tied to the embedding: each matrix runs once"


def test_text_has_a_line_for_every_point_under_its_ladder(stepwell):
    document = stepwell("ladder", "nested-lm", "--json").document
    ran = stepwell("ladder", "nested-lm")
    assert ran.status == 0
    lines = ran.out.splitlines()
    for ladder in document["ladders"]:
        start = next(i for i, line in enumerate(lines) if line.startswith(f"ladder {ladder['name']} "))
        for offset, point in enumerate(ladder["points"], start + 3):
            assert lines[offset].split()[0] == point["name"]
            assert f"{point['quality']:.3f}" in lines[offset]


def test_a_model_without_ladder_has_its_full_size(stepwell, tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "plain", ignore=shutil.ignore_patterns("ladder.json"))
    document = stepwell("ladder", tmp_path / "plain", "--json").document
    assert document["model"] == "plain"
    (ladder,) = document["ladders"]
    (point,) = ladder["points"]
    assert (point["name"], point["cost"], point["quality"], point["metric"]) == ("default:0", 1.0, 1.0, None)
    assert "default:0" in stepwell("ladder", tmp_path / "plain").out


def test_models_that_cannot_be_opened_are_one_line(stepwell, tmp_path):
    assert "neither a directory" in stepwell("ladder", "nested-ln").error
    assert str(tmp_path) in stepwell("ladder", tmp_path).error
    file = tmp_path / "model.bin"
    file.write_bytes(b"\x80\x04")
    assert "is a file" in stepwell("ladder", file).error
    shutil.copytree(SHIPPED, tmp_path / "model")
    (tmp_path / "model" / "ladder.json").write_text('{"format": 1, "ladders": {"depth": {"levels": [{"layers": 99}]}}}')
    assert "ladders.depth.levels[0].layers" in stepwell("ladder", tmp_path / "model").error


@pytest.mark.parametrize(
    ("per_layer", "words"),
    [
        ((512, 512, 512), "512"),
        ((512, 512, 0), "512"),
        ((256, 512, 512), "256-512"),
        ((2, 0, 2), "2 in 2 layers"),
        ((0, 0, 1), "1 in 1 layers"),
        ((0, 0, 0), "none"),
    ],
)
def test_units_in_words(per_layer, words):
    assert units(per_layer) == words
