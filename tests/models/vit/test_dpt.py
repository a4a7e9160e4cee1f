"""DPT against transformers: every readout and neck, images of several sizes and levels in one batch, token budgets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from stepwell.models.fields import ConfigError
from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit import load_model, read_config
from stepwell.models.vit.dpt_config import DptConfig

DPT: dict[str, Any] = {
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 12, 16, 20],
    "fusion_hidden_size": 16,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "project": {},
    "add": {"readout_type": "add", "use_auxiliary_head": False, "qkv_bias": False},
    "ignore": {"readout_type": "ignore", "hidden_act": "relu"},
    "norms": {"use_batch_norm_in_fusion_residual": True},
    "norms-and-biases": {"use_batch_norm_in_fusion_residual": True, "use_bias_in_fusion_residual": True},
    "three-taps": {
        "num_hidden_layers": 5,
        "backbone_out_indices": [1, 2, 4],
        "neck_hidden_sizes": [8, 12, 16],
        "reassemble_factors": [2, 1, 0.5],
        "head_in_index": 1,
    },
}
SCALE = 0.15
"""With larger weights a dozen convolutions give logits whose last digits are above the tolerance."""
REDUCERS = ("cluster", "merge", "super")


def image(height: int = 48, width: int = 48) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.fixture(scope="module")
def dpt(make_pair: Any) -> Any:
    return make_pair("DPTForSemanticSegmentation", scale=SCALE, **DPT)


@torch.no_grad()
def expected(reference: Any, pixels: Tensor) -> Tensor:
    """Logits [classes, H, W] of one image. The reference takes the grid of tokens for a square: its neck is told."""
    states = reference.dpt(pixels[None], output_hidden_states=True).hidden_states[1:]
    taps = [state for index, state in enumerate(states) if index in reference.config.backbone_out_indices]
    patch = reference.config.patch_size
    logits = reference.head(reference.neck(taps, pixels.shape[1] // patch, pixels.shape[2] // patch))
    return F.interpolate(logits, size=pixels.shape[1:], mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_neck_is_the_one_of_transformers(name: str, make_pair: Any) -> None:
    pair = make_pair("DPTForSemanticSegmentation", scale=SCALE, **{**DPT, **VARIANTS[name]})
    model, full = pair.vit.prepare_serving(1 << 22), pair.vit.config.architecture.full
    # Of 7 x 7 patches the coarsest plane has 4 x 4 cells: what is fused differs in size.
    pixels = [image(), image(56, 56), image(), image(64, 40)]
    outputs = model.run([Item(each, full) for each in pixels], ["logits"])
    for each, output in zip(pixels, outputs, strict=True):
        assert output.tokens_kept == model.config.num_tokens(each.shape)
        assert_close(output.tensors["logits"], expected(pair.reference, each), atol=1e-4, rtol=0)
    with torch.no_grad():
        whole = pair.reference(pixels[0][None]).logits
    whole = F.interpolate(whole, size=(48, 48), mode="bilinear", align_corners=False)[0]
    assert_close(outputs[0].tensors["logits"], whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_every_tap_has_a_token_for_every_patch(reducer: str, dpt: Any) -> None:
    full, layers = dpt.vit.config.architecture.full, [0, 1, 2, 3]
    item = Item(image(), full, Reduction(reducer, 0.8))
    ((group, taps),) = dpt.vit.backbone.tap([item], layers)
    assert [tuple(tap.shape) for tap in taps] == [(1, 37, 32)] * 4
    assert group.reduction == item.reduction
    ((_, plain),) = dpt.vit.backbone.tap([Item(image(), full)], layers)
    if reducer == "cluster":  # its first layers run all patches
        assert_close(taps[0], plain[0], atol=1e-5, rtol=0)
    assert (taps[-1] - plain[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("reducer", REDUCERS)
def test_budgets_share_a_batch_and_are_kept(reducer: str, dpt: Any) -> None:
    full, pixels = dpt.vit.config.architecture.full, image()
    budgets = (0.5, 0.7)
    alone = [dpt.vit.run([Item(pixels, full, Reduction(reducer, b))], ["logits"])[0] for b in budgets]
    items = [Item(pixels, full, Reduction(reducer, b)) for b in budgets]
    mixed = dpt.vit.run([Item(image(64, 40), full), *items, Item(pixels, full)], ["logits"])
    for single, output, budget in zip(alone, mixed[1:3], budgets, strict=True):
        assert_close(output.tensors["logits"], single.tensors["logits"], atol=1e-4, rtol=0)
        assert output.tokens_kept <= budget * 37 + 1
    assert_close(mixed[3].tensors["logits"], expected(dpt.reference, pixels), atol=1e-4, rtol=0)


def test_levels_of_heads_and_channels_share_a_batch(dpt: Any) -> None:
    full, narrow = dpt.vit.config.architecture.full, SubNetwork((4, 3, 2, 2), (48, 24, 48, 24))
    (alone,) = dpt.vit.run([Item(image(), narrow)], ["logits"])
    mixed = dpt.vit.run([Item(image(), narrow), Item(image(), full)], ["logits"])
    assert_close(mixed[0].tensors["logits"], alone.tensors["logits"], atol=1e-4, rtol=0)
    assert_close(mixed[1].tensors["logits"], expected(dpt.reference, image()), atol=1e-4, rtol=0)


def test_levels_of_fewer_layers_are_refused(dpt: Any) -> None:
    shallow = SubNetwork((4, 4, 4, 0), (48, 48, 48, 0))
    with pytest.raises(
        ConfigError, match=r"level: runs 3 layers, but DPT's neck reads .* after layers 1, 2, 3, 4; use"
    ):
        dpt.vit.run([Item(image(), shallow)], ["logits"])
    with pytest.raises(ConfigError, match="output: 'embedding' is not one of logits"):
        dpt.vit.run([Item(image(), dpt.vit.config.architecture.full)], ["embedding"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_hybrid": True}, "is_hybrid: a convolutional stem is not supported"),
        ({"backbone_config": {"model_type": "dinov2"}}, "backbone_config: only DPT's own plain vision transformer"),
        ({"architectures": ["DPTForDepthEstimation"]}, "architectures: 'DPTForDepthEstimation' is not supported; use"),
        ({"readout_type": "mean"}, "readout_type: expected ignore, add or project, got 'mean'"),
        ({"backbone_out_indices": [0, 1, 2, 12]}, r"backbone_out_indices: expected different layers of 0\.\.3, got"),
        ({"neck_hidden_sizes": [8, 8]}, "expected lists of one length, got 4, 2, 4"),
        ({"reassemble_factors": [4, 2, 1.5, 0.5]}, "reassemble_factors: expected whole numbers or fractions .*got 1.5"),
        ({"head_in_index": 4}, r"head_in_index: expected one of -4\.\.3, got 4"),
        ({"reducers": {"slim": {}}}, "reducers.slim: not supported by DPT, whose neck reads every patch"),
        ({"fusion_hidden_size": 0}, "fusion_hidden_size: expected a whole number"),
    ],
)
def test_other_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DptConfig.from_hf({"model_type": "dpt", **DPT, "hidden_size": 32, "num_attention_heads": 4, **fields})


def test_weights_of_another_neck_are_refused(dpt: Any, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(dpt.path, path)
    document = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**document, "readout_type": "add"}))
    with pytest.raises(ValueError, match=r"unexpected tensor neck\.reassemble_stage\.readout_projects\.0\.0"):
        load_model(path, read_config(path), torch.float32)
