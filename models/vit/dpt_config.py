"""The configuration of DPT, a plain vision transformer under a convolutional neck (Ranftl et al. 2021, Vision
transformers for dense prediction, arXiv 2103.13413), as transformers has it.

The neck reads the tokens of all patches after several layers, the last of them too: levels choose heads, channels and
token budgets, never fewer layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch

from stepwell.models.fields import ConfigError, read_flag, read_size
from stepwell.models.ladder import Architecture
from stepwell.models.one_shot import Task
from stepwell.models.vit.config import ViTConfig, read_head
from stepwell.models.vit.reducers import TRAINED

Readout = Literal["ignore", "add", "project"]
"""What becomes of the class token: nothing; added to each patch; beside each patch, and both projected."""
_KIND = "DPTForSemanticSegmentation"


@dataclass(frozen=True)
class TapConfig:
    """Where the neck reads the tokens of a layer, and what plane it makes of them."""

    layer: int
    channels: int
    scale: int
    """Rows and columns of the plane for each of the grid's; negative = so many of the grid's for one of the plane's."""


@dataclass(frozen=True)
class DptConfig:
    """Backbone, taps and neck."""

    backbone: ViTConfig
    taps: tuple[TapConfig, ...]
    """From the lowest layer to the highest."""
    fusion_size: int
    """Channels of the planes that are fused."""
    num_labels: int
    labels: tuple[str, ...] = ()
    readout: Readout = "project"
    head_input: int = -1
    """Which fused plane the classes are made of, from the coarsest on."""
    fusion_norm: bool = False
    fusion_bias: bool = True
    model_type: str = "dpt"
    vocab_size: int = 0
    max_tokens: int = 0
    type_vocab_size: int = 0
    truncates_texts: bool = False
    task: Task = "segment"

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def image_size(self) -> tuple[int, int]:
        """What it was trained at; it takes others."""
        return self.backbone.image_size

    @property
    def architecture(self) -> Architecture:
        """The backbone's."""
        return self.backbone.architecture

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        return {"logits": (self.num_labels, -1, -1)}

    @property
    def unit_parameters(self) -> tuple[int, int, int]:
        """Those of the backbone, and of the neck and the head."""
        head, channel, always = self.backbone.unit_parameters
        size, fused = self.backbone.hidden_size, self.fusion_size
        for tap in self.taps:
            kernel = 9 if tap.scale < 0 else tap.scale**2 if tap.scale > 1 else 0
            always += size * tap.channels + kernel * tap.channels**2 + 9 * tap.channels * fused + 37 * fused**2
            always += 2 * size**2 if self.readout == "project" else 0
        return head, channel, always + 9 * fused**2 + fused * self.num_labels

    def num_tokens(self, shape: Sequence[int]) -> int:
        """Tokens of the backbone. Raises ConfigError naming the shape and the remedy."""
        return self.backbone.num_tokens(shape)

    @classmethod
    def from_hf(cls, document: Mapping[str, Any]) -> DptConfig:
        """Read the parsed content of a ``config.json`` of transformers. Raises ConfigError."""
        kind = next(iter(document.get("architectures") or ()), _KIND)
        if kind != _KIND:
            raise ConfigError(f"architectures: {kind!r} is not supported; use {_KIND}")
        if read_flag(document, "is_hybrid"):
            raise ConfigError("is_hybrid: a convolutional stem is not supported; use a checkpoint with is_hybrid false")
        if document.get("backbone_config") is not None:
            raise ConfigError("backbone_config: only DPT's own plain vision transformer is supported, which has none")
        head, norm = read_head({**document, "task": "segment"}, has_head=True), "use_batch_norm_in_fusion_residual"
        backbone, has_norm = _backbone(document), read_flag(document, norm)
        taps = _taps(document, backbone.num_layers)
        return cls(
            backbone=backbone,
            taps=taps,
            fusion_size=read_size(document, "fusion_hidden_size", 256),
            num_labels=head["num_labels"],
            labels=head["labels"],
            readout=_readout(document),
            head_input=_head_input(document, len(taps)),
            fusion_norm=has_norm,
            fusion_bias=read_flag(document, "use_bias_in_fusion_residual", not has_norm),
        )


def _backbone(document: Mapping[str, Any]) -> ViTConfig:
    described = {"image_size": 384, **document, "model_type": "vit", "architectures": ["ViTModel"], "task": "encode"}
    found = ViTConfig.from_hf({**described, "interpolate_pos_encoding": True})
    if trained := sorted(found.reducer_settings.keys() & TRAINED.keys()):
        raise ConfigError(
            f"reducers.{trained[0]}: not supported by DPT, whose neck reads every patch after several layers; use "
            "reducers without weights of their own"
        )
    return replace(found, resampling="bilinear", model_type="dpt")


def _taps(document: Mapping[str, Any], num_layers: int) -> tuple[TapConfig, ...]:
    layers = sorted(_list(document, "backbone_out_indices", [2, 5, 8, 11]))
    channels, factors = (
        _list(document, key, default)
        for key, default in (("neck_hidden_sizes", [96, 192, 384, 768]), ("reassemble_factors", [4, 2, 1, 0.5]))
    )
    if len(set(layers)) != len(layers) or any(type(n) is not int or not 0 <= n < num_layers for n in layers):
        raise ConfigError(f"backbone_out_indices: expected different layers of 0..{num_layers - 1}, got {layers!r}")
    if not len(layers) == len(channels) == len(factors):
        raise ConfigError(
            f"backbone_out_indices, neck_hidden_sizes, reassemble_factors: expected lists of one length, got "
            f"{len(layers)}, {len(channels)}, {len(factors)}; correct them"
        )
    sizes = [read_size({"neck_hidden_sizes": size}, "neck_hidden_sizes") for size in channels]
    return tuple(TapConfig(n, size, _scale(f)) for n, size, f in zip(layers, sizes, factors, strict=True))


def _scale(factor: Any) -> int:
    if isinstance(factor, (int, float)) and factor >= 1 and factor == int(factor):
        return int(factor)
    if isinstance(factor, float) and 0 < factor < 1:
        return -int(1 / factor)
    raise ConfigError(f"reassemble_factors: expected whole numbers or fractions below 1, got {factor!r}")


def _list(document: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    values = document.get(key, default)
    if not isinstance(values, (list, tuple)) or not values or not all(isinstance(v, (int, float)) for v in values):
        raise ConfigError(f"{key}: expected a list of numbers, got {values!r}")
    return list(values)


def _readout(document: Mapping[str, Any]) -> Readout:
    if (kind := document.get("readout_type", "project")) not in ("ignore", "add", "project"):
        raise ConfigError(f"readout_type: expected ignore, add or project, got {kind!r}")
    return cast("Readout", kind)


def _head_input(document: Mapping[str, Any], count: int) -> int:
    place = document.get("head_in_index", -1)
    if type(place) is not int or not -count <= place < count:
        raise ConfigError(f"head_in_index: expected one of {-count}..{count - 1}, got {place!r}")
    return place
