"""A vision transformer from and to a directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stepwell.models.fields import ConfigError, read_json
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.model import ViT
from stepwell.models.vit.names import module_names, stored_name
from stepwell.models.vit.timm_config import from_timm
from stepwell.models.weights import WEIGHTS_FILE, fill


def read_vit_config(directory: Path) -> ViTConfig:
    """Read ``config.json`` in the layout of transformers or timm. Raises ConfigError naming file and field."""
    path = directory / "config.json"
    document = read_json(path)
    try:
        is_timm = "architecture" in document and "model_type" not in document
        return from_timm(document) if is_timm else ViTConfig.from_hf(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_vit(directory: Path, config: ViTConfig, dtype: torch.dtype) -> ViT:
    """The model of a checkpoint with its weights, frozen. Raises ModelLoadError naming the file and the tensor."""
    with torch.device("meta"):
        vit = ViT(config)
    fill(vit, directory, dtype, config.model_type, lambda name: module_names(config.model_type, name))
    return vit.requires_grad_(False).eval()


def save_vit(directory: Path, vit: ViT, document: Mapping[str, Any]) -> None:
    """Write ``config.json`` (``document``, of model type ``vit`` in Hugging Face's terms and ours, see ``config``) and
    ``model.safetensors``; transformers reads what is not ours of it."""
    assert vit.config.model_type == document["model_type"] == "vit", "only this layout is written"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tensors = {stored_name(name): tensor.detach().contiguous() for name, tensor in vit.state_dict().items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
