from __future__ import annotations

import json

import pytest

TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "ffn_channels": 16, "batch_size": 8, "num_held_out": 24}
RECIPES = {
    "routed": {**TINY, "dense_steps": 2, "route_profile": [1.0, 0.5], "slim_before": [1]},
    "supernet": {**TINY, "depths": [1, 2], "ffn_widths": [8, 16], "heads": [1, 2]},
}


@pytest.mark.parametrize(("training", "ladder"), [("routed", "route"), ("supernet", "w8-h1")])
def test_it_writes_a_model_directory_and_can_be_resumed(stepwell, tmp_path, training, ladder):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPES[training]))
    arguments = ["train", training, "--out", tmp_path / "run", "--recipe", recipe, "--steps", 2]
    ran = stepwell(*arguments, "--seed", 3, "--json")
    assert ran.status == 0, ran.err
    document = ran.document
    assert (document["recipe"]["num_steps"], document["recipe"]["seed"]) == (2, 3)
    assert "2/2" in ran.err
    assert ladder in document["ladders"]["ladders"]
    assert "--resume" in stepwell(*arguments, "--seed", 3).error
    assert stepwell(*arguments, "--seed", 3, "--resume").status == 0
    assert "seed" in stepwell(*arguments, "--seed", 4, "--resume").error


def test_recipes_that_cannot_be_used_are_one_line(stepwell, tmp_path):
    recipe = tmp_path / "recipe.json"
    for content, named in (
        ({"batch_size": "many"}, "--recipe"),
        ({"colour": 1}, "colour"),
        ({"num_heads": 5}, "hidden"),
    ):
        recipe.write_text(json.dumps(content))
        assert named in stepwell("train", "routed", "--out", tmp_path / "run", "--recipe", recipe).error
