"""Where the tokens of an image go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from stepwell.serving.cli.route_plot import outlines


@pytest.fixture(scope="module")
def small_vit(tmp_path_factory):
    """Without a ladder: the full model, and training-free reducers to be asked for."""
    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=4, num_attention_heads=4)
    path = tmp_path_factory.mktemp("models") / "vit"
    ViTForImageClassification(config).save_pretrained(path)
    return path


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize(("options", "point", "most"), [((), "default:0", 65), (("--budget", 0.5), "", 33)])
def test_the_counts_and_the_picture(stepwell, small_vit, image, tmp_path, options, point, most):
    picture = tmp_path / "new" / "routes.png"
    ran = stepwell("explain", small_vit, image, "--out", picture, "--json", *options)
    assert ran.status == 0
    document = ran.document
    assert document["operating_point"].startswith(point or document["operating_point"])
    assert document["tokens"] == 65
    assert document["tokens_kept"] <= most
    assert len(document["layers"]) == 4
    assert all(layer["patches"] == 64 for layer in document["layers"])
    assert len(document["classes"]) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_merged_tokens_are_counted(stepwell, small_vit, image, tmp_path):
    ran = stepwell("explain", small_vit, image, "--operating-point", "merge:2", "--out", tmp_path / "r.png", "--json")
    last = ran.document["layers"][-1]
    assert last["merged"] > 0
    assert last["tokens_run"] < 64
    assert last["skipped"] == last["dropped"] == 0


def test_as_text(stepwell, small_vit, image, tmp_path):
    ran = stepwell("explain", small_vit, image, "--out", tmp_path / "routes.png")
    assert "vit at default:0: 65 of 65 tokens a layer" in ran.out
    assert "picture:" in ran.err


def test_what_cannot_be_explained_is_one_line(stepwell, small_vit, image, tmp_path):
    assert "nested-lm takes no images" in stepwell("explain", "nested-lm", image).error
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert "not a PNG or JPEG" in stepwell("explain", small_vit, text).error
    assert "token_budget: the smallest is 0.25" in stepwell("explain", small_vit, image, "--budget", 0.1).error
    assert "No such file" in stepwell("explain", small_vit, tmp_path / "none.png").error


def test_outlines_surround_what_shares_a_token():
    alone, pair = np.arange(4).reshape(2, 2), np.array([[7, 7], [1, 2]])
    assert len(outlines(alone)) == 0
    edges = {tuple(sorted(map(tuple, edge))) for edge in outlines(pair).tolist()}
    assert edges == {((0.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (2.0, 1.0))}
