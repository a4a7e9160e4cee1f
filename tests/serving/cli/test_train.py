from __future__ import annotations

import json

import pytest

RECIPE = {
    "vocab_size": 280,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "ffn_widths": [8, 16],
    "max_positions": 32,
    "context": 16,
    "tokens_per_step": 64,
    "num_exits": 1,
    "held_out_share": 0.3,
    "warmup_steps": 1,
    "bf16": False,
}


@pytest.fixture
def arguments(tmp_path):
    """A run of seconds: a tiny recipe over a dozen short files."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(12):
        lines = [f"def function_{number}_{line}(value):\n    return value + {line}\n" for line in range(12)]
        (sources / f"module_{number}.py").write_text("\n".join(lines))
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    return ["train", "nested", "--out", tmp_path / "run", "--sources", sources, "--recipe", recipe, "--steps", 3]


def test_it_writes_a_model_that_other_commands_open(stepwell, arguments):
    ran = stepwell(*arguments, "--seed", 7, "--json")
    assert ran.status == 0, ran.err
    document = ran.document
    assert document["recipe"]["num_steps"] == 3
    assert document["recipe"]["seed"] == 7
    assert document["recipe"]["hidden_size"] == RECIPE["hidden_size"]
    assert "step 3/3" in ran.err
    ladder = stepwell("ladder", document["model"], "--json").document
    written = document["ladders"]["ladders"]
    assert {item["name"] for item in ladder["ladders"]} == set(written)
    for item in ladder["ladders"]:
        assert [p["quality"] for p in item["points"]] == [level["quality"] for level in written[item["name"]]["levels"]]
    assert stepwell("generate", document["model"], "def f", "--max-tokens", 4).status == 0


def test_a_finished_run_is_not_overwritten_but_can_be_resumed(stepwell, arguments):
    first = stepwell(*arguments)
    assert first.status == 0, first.err
    assert "stepwell ladder" in first.out
    assert "--resume" in stepwell(*arguments).error
    assert stepwell(*arguments, "--resume").status == 0
    assert "num_steps" in stepwell(*arguments, "--steps", 4, "--resume").error


def test_recipes_that_cannot_be_used_are_one_line(stepwell, arguments, tmp_path):
    recipe = tmp_path / "recipe.json"
    for content, named in (
        ('{"num_layres": 2}', "num_layres"),
        ('{"ffn_widths": [16, 8]}', "ffn_widths"),
        ('{"num_steps": "many"}', "recipe.json"),
        ('{"output": "elsewhere"}', "recipe.json"),
        ("[1]", "recipe.json"),
        ("{", "recipe.json"),
    ):
        recipe.write_text(content)
        assert named in stepwell(*arguments[:-2]).error
    assert "recipe" in stepwell(*arguments[:-4], "--recipe", tmp_path / "missing.json").error
    recipe.write_text("{}")
    assert "num_steps" in stepwell(*arguments[:-1], 0).error


TINY_VISION = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_channels": 16,
    "batch_size": 8,
    "num_held_out": 24,
    "checkpoint_every": 2,
}


@pytest.mark.parametrize(
    ("training", "extra", "ladders"),
    [
        ("routed", {"dense_steps": 2, "route_profile": [1.0, 0.5], "slim_before": [1]}, {"route", "slim", "merge"}),
        ("supernet", {"depths": [1, 2], "ffn_widths": [8, 16], "heads": [1, 2]}, {"default", "w8-h1", "w16-h2"}),
    ],
)
def test_vision_recipes_write_models_that_other_commands_open(stepwell, tmp_path, training, extra, ladders):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(TINY_VISION | extra))
    arguments = ["train", training, "--out", tmp_path / "run", "--recipe", recipe, "--steps", 2]
    ran = stepwell(*arguments, "--json")
    assert ran.status == 0, ran.err
    assert "2/2" in ran.err
    document = stepwell("ladder", ran.document["model"], "--json").document
    assert document["task"] == "classify"
    assert ladders <= {ladder["name"] for ladder in document["ladders"]}
    assert "--resume" in stepwell(*arguments).error
    assert stepwell(*arguments, "--resume").status == 0
