"""The shipped model is what its files say it is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from stepwell.models.ladder import Ladder
from stepwell.models.loader import LoadedModel, open_model
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.evaluate import measure_grid
from stepwell.models.training.publish import EVALUATION_FILE, parse_grid
from stepwell.models.training.sampling import rectangle

DEPTHS, WIDTHS = range(1, 9), (128, 256, 384, 512)


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return open_model("nested-lm", torch.float32)


@pytest.fixture(scope="module")
def evaluation(shipped: LoadedModel) -> dict[str, Any]:
    return json.loads((shipped.path / EVALUATION_FILE).read_text(encoding="utf-8"))


def test_it_is_small_and_offers_eight_depths_and_four_widths(shipped: LoadedModel) -> None:
    assert sum(file.stat().st_size for file in shipped.path.iterdir()) < 9e6
    architecture = shipped.config.architecture
    offered = {level.subnet for ladder in shipped.ladders.ladders.values() for level in ladder.levels}
    assert {rectangle(architecture, depth, width) for depth in DEPTHS for width in WIDTHS[:3]} <= offered
    assert {rectangle(architecture, depth, 512) for depth in DEPTHS} <= offered
    assert 8 <= len(shipped.ladders.ladders["default"].levels) <= 12


def test_every_larger_level_is_better(shipped: LoadedModel) -> None:
    def measured(ladder: Ladder) -> list[float]:
        return [level.metric for level in ladder.levels if level.metric is not None]

    for ladder in shipped.ladders.ladders.values():
        assert len(measured(ladder)) == len(ladder.levels)
        assert all(large < small for small, large in itertools.pairwise(measured(ladder))), ladder.name
        assert all(small.quality < large.quality for small, large in itertools.pairwise(ladder.levels)), ladder.name
    assert shipped.ladders.ladders["default"].levels[-1].quality == 1.0


def test_ladder_metrics_are_the_evaluated_ones(shipped: LoadedModel, evaluation: dict[str, Any]) -> None:
    grid = parse_grid(evaluation["bits_per_byte"])
    assert set(grid) == {(depth, width) for depth in DEPTHS for width in WIDTHS}
    for ladder in shipped.ladders.ladders.values():
        for level in ladder.levels:
            point = level.subnet.depth, level.subnet.ffn_channels[0]
            assert level.metric == pytest.approx(grid[point], abs=1e-4)


def test_the_weights_reproduce_the_stored_bits_per_byte(shipped: LoadedModel, evaluation: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_file(str(shipped.path / "tokenizer.json"))
    excerpt = evaluation["slice"]
    stored = parse_grid(excerpt["bits_per_byte"])
    found = measure_grid(shipped.decoder, tokenizer, [excerpt["text"]], (128, 512), evaluation["context"])
    for point, value in found.items():
        assert value == pytest.approx(stored[point], rel=1e-3), point


def test_the_recipe_is_the_default_one(shipped: LoadedModel, evaluation: dict[str, Any]) -> None:
    default = NestedConfig(output=Path())
    assert NestedConfig.from_json(evaluation["recipe"], output=Path()) == default
    assert json.loads((shipped.path / "config.json").read_text(encoding="utf-8")) == default.hf_config()


def test_transformers_loads_it_and_agrees(shipped: LoadedModel) -> None:
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(shipped.path, dtype=torch.float32)
    token_ids = torch.arange(1, 65).view(2, 32) * 7
    with torch.no_grad():
        (hidden,) = shipped.decoder.forward_dense(token_ids, shipped.config.architecture.full)
        torch.testing.assert_close(shipped.decoder.logits(hidden), reference(token_ids).logits, atol=1e-4, rtol=1e-4)
