"""The outputs of timm, from checkpoints that timm saved: see ``make_timm_fixture.py``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from stepwell.models.one_shot import Item
from stepwell.models.vit.loading import load_vit, read_vit_config

FOLDER = Path(__file__).parent / "data" / "timm"
NAMES = ("vit", "vit_avg", "vit_registers", "deit_distilled", "deit3", "dinov2", "dinov2_registers")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "outputs.safetensors")


def test_every_case_is_tested() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/config.json")} == set(NAMES)
    assert json.loads((FOLDER / "about.json").read_text())["timm"]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_timm(tensors: dict[str, Tensor], name: str) -> None:
    config = read_vit_config(FOLDER / name)
    vit, pixels, expected = load_vit(FOLDER / name, config, torch.float32), *case(tensors, name)
    wanted = "logits" if config.num_labels else "embedding"
    assert expected.shape == (2, config.num_labels or config.hidden_size)
    assert_close(vit(pixels, wanted=[wanted])[wanted], expected, atol=1e-4, rtol=1e-4)
    items = [Item(image, config.architecture.full) for image in pixels]
    served = torch.stack([output.tensors[wanted] for output in vit.prepare_serving(0).run(items, [wanted])])
    assert_close(served, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_avg", {"pooling": "cls"}),
        ("dinov2_registers", {"antialias": False}),
        ("dinov2", {"norm_eps": 0.1}),
    ],
)
def test_what_the_configuration_says_shows_in_the_outputs(
    tensors: dict[str, Tensor], name: str, changes: dict[str, object]
) -> None:
    """Otherwise the test above would prove little of it."""
    vit = load_vit(FOLDER / name, read_vit_config(FOLDER / name), torch.float32)
    pixels, expected = case(tensors, name)
    vit.config = replace(vit.config, **changes)  # type: ignore[arg-type]
    vit.embeddings.antialias, vit.norm.eps = vit.config.antialias, vit.config.norm_eps
    wanted = "logits" if vit.config.num_labels else "embedding"
    assert not torch.allclose(vit(pixels, wanted=[wanted])[wanted], expected, atol=1e-3)


def case(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Pixels, and what timm says of them."""
    return tensors[f"{name}.pixels"], tensors[f"{name}.output"]


def test_positions_of_patches_alone_are_read(tensors: dict[str, Tensor]) -> None:
    for name, places in (("deit3", 16), ("dinov2_registers", 16), ("vit_registers", 19), ("dinov2", 17)):
        vit = load_vit(FOLDER / name, read_vit_config(FOLDER / name), torch.float32)
        assert vit.embeddings.position_embeddings.shape == (1, places, 16)
        assert vit.embeddings.positions(vit.config.base_grid).shape == (1, vit.config.base_grid.num_tokens, 16)
