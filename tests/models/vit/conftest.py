"""Tiny vision transformers saved by transformers, opened by our loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from stepwell.models.vit import load_model, read_config
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.loading import save_vit
from stepwell.models.vit.model import ViT

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 8,
}


@dataclass
class Pair:
    """A model of transformers, the directory it was saved to, and ours of the same weights."""

    reference: PreTrainedModel
    path: Path
    vit: ViT


def _randomise(model: nn.Module, scale: float = 0.2) -> None:
    """Weights large enough that every part of the model shows in the outputs."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if not weight.is_floating_point():
            continue
        noise = torch.randn(weight.shape, generator=generator) * scale
        scale_like = ("norm" in name and "weight" in name) or "lambda" in name or "running_var" in name
        weight.data.copy_((1 + noise).abs() if scale_like else noise)


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """``(class name in transformers, extra=keys of config.json, scale=of the weights, **config fields) -> Pair``."""

    def make(kind: str, extra: dict[str, Any] | None = None, scale: float = 0.2, **fields: Any) -> Pair:
        cls = getattr(transformers, kind)
        reference = cls(cls.config_class(**{**TINY, "num_labels": 5, **fields})).eval().requires_grad_(False)
        _randomise(reference, scale)
        path = tmp_path_factory.mktemp(kind) / "model"
        reference.save_pretrained(path)
        if extra:
            document = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps({**document, **extra}))
        return Pair(reference, path, load_model(path, read_config(path), torch.float32))

    return make


@pytest.fixture(scope="session")
def vit(make_pair: Callable[..., Pair]) -> ViT:
    """A classifier."""
    return make_pair("ViTForImageClassification").vit


@pytest.fixture(scope="session")
def make_segmenter(make_pair: Callable[..., Pair], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ViT]:
    """``(type of head, extra keys of config.json, **config fields) -> ViT`` with random weights, saved and loaded."""

    def make(head: str, extra: dict[str, Any] | None = None, **fields: Any) -> ViT:
        path = tmp_path_factory.mktemp(head)
        document = {
            **TINY,
            "model_type": "vit",
            "id2label": {str(i): f"class {i}" for i in range(5)},
            "task": "segment",
            "segmentation_head": {"type": head},
            **(extra or {}),
            **fields,
        }
        vit = ViT(ViTConfig.from_hf(document))
        _randomise(vit)
        save_vit(path, vit, document)
        return load_model(path, read_config(path), torch.float32)

    return make


@pytest.fixture(scope="session")
def random_vit() -> Callable[[dict[str, Any]], ViT]:
    """``(config.json) -> ViT`` with random weights, those of its reducers too."""

    def make(document: dict[str, Any]) -> ViT:
        vit = ViT(ViTConfig.from_hf(document))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in vit.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
        return vit

    return make
