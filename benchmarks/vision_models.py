"""What the benchmarks of the shipped vision transformers share."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from stepwell.models.ladder import SubNetwork
from stepwell.models.training.publish import EVALUATION_FILE
from stepwell.models.vit import load_model, read_config
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers.base import Schedule

PACKED_BYTES = 1 << 26


def shipped_folder(name: str) -> Path:
    """Where a shipped model is."""
    return Path(str(resources.files("stepwell.models"))) / "shipped" / name


def evaluation(name: str) -> dict[str, Any]:
    """What was measured when the model was made, and its recipe."""
    document = json.loads((shipped_folder(name) / EVALUATION_FILE).read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def open_shipped(name: str) -> tuple[ViT, dict[str, Any]]:
    """A shipped vision transformer ready to serve in float32, and its recipe."""
    folder = shipped_folder(name)
    vit = load_model(folder, read_config(folder), torch.float32)
    assert isinstance(vit, ViT)
    return vit.prepare_serving(PACKED_BYTES), evaluation(name)["recipe"]


def schedule_flops(config: ViTConfig, subnet: SubNetwork, schedule: Schedule) -> int:
    """Floating point operations (two a multiply-add) of the products of one image's embedding and layers, by any
    schedule; :func:`~stepwell.models.vit.tally.flops` of a model's own ones."""
    per_head, per_channel, embedding = config.unit_parameters
    total = config.base_grid.num_patches * embedding
    for tokens, heads, channels in zip(schedule, subnet.kv_groups, subnet.ffn_channels, strict=False):
        total += tokens.attention * heads * (per_head + 2 * tokens.attention * config.head_dim)
        total += tokens.ffn * channels * per_channel
    return 2 * total
