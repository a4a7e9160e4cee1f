"""Vision transformers from and to a directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from stepwell.models.fields import ConfigError, read_json
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.dpt import Dpt
from stepwell.models.vit.dpt_config import DptConfig
from stepwell.models.vit.model import ViT
from stepwell.models.vit.names import dpt_names, module_names, stored_name
from stepwell.models.vit.segformer import Segformer
from stepwell.models.vit.segformer_config import SegformerConfig
from stepwell.models.vit.timm_config import from_timm
from stepwell.models.weights import WEIGHTS_FILE, fill

_Module = TypeVar("_Module", bound=nn.Module)

AnyConfig: TypeAlias = ViTConfig | SegformerConfig | DptConfig


def read_config(directory: Path) -> AnyConfig:
    """Read ``config.json`` in the layout of transformers or timm. Raises ConfigError naming file and field."""
    path = directory / "config.json"
    document = read_json(path)
    try:
        if "architecture" in document and "model_type" not in document:
            return from_timm(document)
        if document.get("model_type") == "dpt":
            return DptConfig.from_hf(document)
        is_segformer = document.get("model_type") == "segformer"
        return SegformerConfig.from_hf(document) if is_segformer else ViTConfig.from_hf(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_vit_config(directory: Path) -> ViTConfig:
    """As :func:`read_config`, of what must be a vision transformer without stages and neck. Raises ConfigError."""
    config = read_config(directory)
    if not isinstance(config, ViTConfig):
        problem = (
            f"model_type: {config.model_type!r} has stages or a neck; use one of vit, deit, dinov2 or timm's layout"
        )
        raise ConfigError(f"{directory / 'config.json'}: {problem}")
    return config


def load_model(directory: Path, config: AnyConfig, dtype: torch.dtype) -> ViT | Segformer | Dpt:
    """The model of a checkpoint with its weights, frozen. Raises ModelLoadError naming the file and the tensor."""
    if isinstance(config, ViTConfig):
        return load_vit(directory, config, dtype)
    with torch.device("meta"):
        model = Dpt(config) if isinstance(config, DptConfig) else Segformer(config)
    return _fill(model, directory, config.model_type, dtype)


def load_vit(directory: Path, config: ViTConfig, dtype: torch.dtype) -> ViT:
    """As :func:`load_model`."""
    with torch.device("meta"):
        vit = ViT(config)
    return _fill(vit, directory, config.model_type, dtype)


def _fill(model: _Module, directory: Path, model_type: str, dtype: torch.dtype) -> _Module:
    names = dpt_names if model_type == "dpt" else partial(module_names, model_type)
    fill(model, directory, dtype, model_type, names)
    return model.requires_grad_(False).eval()


def save_vit(directory: Path, vit: ViT, document: Mapping[str, Any]) -> None:
    """Write ``config.json`` (``document``, of model type ``vit`` in Hugging Face's terms and ours, see ``config``) and
    ``model.safetensors``; transformers reads what is not ours of it."""
    assert vit.config.model_type == document["model_type"] == "vit", "only this layout is written"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tensors = {stored_name(name): tensor.detach().contiguous() for name, tensor in vit.state_dict().items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
