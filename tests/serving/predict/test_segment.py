"""Images to segment: a class for every pixel, with a grid of tokens that the budget sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stepwell.models.loader import load_predictor, read_files
from stepwell.serving import Client

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
