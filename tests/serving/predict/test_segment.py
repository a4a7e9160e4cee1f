"""Images to segment: a class for every pixel, with a grid of tokens that the budget sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import DPTConfig, DPTForSemanticSegmentation

from stepwell.models.loader import load_predictor, read_files
from stepwell.serving import Client, Engine

SIZE = 32


@pytest.fixture(scope="module")
def segmenter(classifier, tmp_path_factory):
    """The classifier's encoder and classes, with our linear head for every patch."""
    path = tmp_path_factory.mktemp("models") / "segmenter"
    path.mkdir()
    document = json.loads((classifier / "config.json").read_text())
    document |= {"task": "segment", "segmentation_head": {"type": "linear"}}
    (path / "config.json").write_text(json.dumps(document))
    save_file(load_file(classifier / "model.safetensors"), path / "model.safetensors")
    return path


def test_budgets_of_a_segmenter(wire, tiny, segmenter) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    with (
        wire.run_server(tiny, [{"source": str(segmenter), "profile": "default"}]) as running,
        Client(running.address) as client,
    ):
        described = client.describe("segmenter")
        assert described.task == "segment"
        full = client.predict("segmenter", pixel_values=pixels)
        assert full.outputs["logits"].shape == (2, 5, SIZE, SIZE)
        model = load_predictor(read_files(str(segmenter)))
        with torch.inference_mode():
            expected = model(torch.from_numpy(pixels))["logits"].numpy()
        np.testing.assert_allclose(full.outputs["logits"], expected, atol=1e-4)
        reduced = client.predict("segmenter", pixel_values=pixels, operating_point="cluster:2")
        assert reduced.outputs["logits"].shape == (2, 5, SIZE, SIZE)
        assert reduced.report.tokens_kept <= 0.5 * full.report.tokens_kept + 2
        assert np.isfinite(reduced.outputs["logits"]).all()


def test_dpt_is_served_at_full_size_and_at_budgets(tmp_path) -> None:
    torch.manual_seed(8)
    config = DPTConfig(
        image_size=SIZE,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=16,
        initializer_range=0.15,
        num_labels=5,
    )
    reference = DPTForSemanticSegmentation(config).eval()
    reference.save_pretrained(tmp_path)
    pixels = np.random.default_rng(1).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    with torch.inference_mode():
        logits = reference(torch.from_numpy(pixels)).logits
        expected = F.interpolate(logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False).numpy()
    with Engine.open(str(tmp_path), profile="default") as engine:
        full = engine.predict(pixel_values=pixels)
        np.testing.assert_allclose(full.outputs["logits"], expected, atol=1e-4)
        reduced = engine.predict(pixel_values=pixels, operating_point="cluster:2")
        assert reduced.outputs["logits"].shape == expected.shape
        assert reduced.report.tokens_kept <= 0.5 * full.report.tokens_kept + 2
        assert np.abs(reduced.outputs["logits"] - expected).max() > 1e-3
