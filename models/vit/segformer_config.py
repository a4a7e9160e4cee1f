"""The configuration of SegFormer, a hierarchical segmenter (Xie et al. 2021, arXiv 2105.15203), as transformers has it.

Its stages differ in heads and channels, so a unit of its ladders is a whole sub-layer: one "head group" and one "FFN
channel" a layer. Levels drop sub-layers (``drop_attention``, ``drop_ffn``) or the last layers (``layers``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from stepwell.models.fields import ConfigError, read_dtype, read_size
from stepwell.models.ladder import Architecture
from stepwell.models.one_shot import Task
from stepwell.models.vit.config import read_activation, read_head

_IMAGE_SIZE = (512, 512)


@dataclass(frozen=True)
class StageConfig:
    """One stage: overlapping patches of the plane before, then layers."""

    depth: int
    in_size: int
    hidden_size: int
    num_heads: int
    ffn_channels: int
    patch_size: int
    stride: int
    reduction: int
    """Keys and values are of so many by so many fewer tokens."""

    def side(self, before: int) -> int:
        """Rows (or columns) of tokens that so many pixels or tokens become."""
        return (before + 2 * (self.patch_size // 2) - self.patch_size) // self.stride + 1


@dataclass(frozen=True)
class SegformerConfig:
    """Stages and decoder."""

    stages: tuple[StageConfig, ...]
    decoder_size: int
    num_labels: int
    labels: tuple[str, ...] = ()
    num_channels: int = 3
    activation: str = "gelu"
    dtype: torch.dtype = torch.float32
    model_type: str = "segformer"
    image_size: tuple[int, int] = _IMAGE_SIZE
    """What it was trained at, mostly; it takes others."""
    vocab_size: int = 0
    max_tokens: int = 0
    type_vocab_size: int = 0
    truncates_texts: bool = False
    task: Task = "segment"

    @cached_property
    def architecture(self) -> Architecture:
        """Layers of all stages, one after another; a unit is a whole sub-layer."""
        return Architecture(sum(stage.depth for stage in self.stages), 1, 1)

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        return {"logits": (self.num_labels, -1, -1)}

    @property
    def unit_parameters(self) -> tuple[int, int, int]:
        """Weights of an average layer's attention, of its FFN, and of all else."""
        layers = self.architecture.num_layers
        attention = sum(
            s.depth * s.hidden_size**2 * (4 + (s.reduction**2 if s.reduction > 1 else 0)) for s in self.stages
        )
        ffn = sum(stage.depth * stage.ffn_channels * (2 * stage.hidden_size + 9) for stage in self.stages)
        rest = sum(stage.in_size * stage.patch_size**2 * stage.hidden_size for stage in self.stages)
        rest += sum(stage.hidden_size + self.decoder_size for stage in self.stages) * self.decoder_size
        return attention // layers, ffn // layers, rest

    def num_tokens(self, shape: Sequence[int]) -> int:
        """Tokens of the first, finest stage. Raises ConfigError naming the shape and the remedy."""
        if len(shape) != 3 or shape[0] != self.num_channels or min(shape) < 1:
            raise ConfigError(f"shape: expected an image [{self.num_channels}, height, width], got {list(shape)}")
        sides, counts = list(shape[1:]), []
        for stage in self.stages:
            sides = [stage.side(side) for side in sides]
            counts.append(sides[0] * sides[1])
            if min(sides) < stage.reduction:
                raise ConfigError(f"shape: {list(shape)} is too small for this model; give a larger image")
        return counts[0]

    @classmethod
    def from_hf(cls, document: Mapping[str, Any]) -> SegformerConfig:
        """Read the parsed content of a ``config.json`` of transformers. Raises ConfigError."""
        kind = next(iter(document.get("architectures") or ()), "SegformerForSemanticSegmentation")
        if kind != "SegformerForSemanticSegmentation":
            raise ConfigError(f"architectures: {kind!r} is not supported; use SegformerForSemanticSegmentation")
        head = read_head({**document, "task": "segment"}, has_head=True)
        return cls(
            stages=_stages(document),
            decoder_size=read_size(document, "decoder_hidden_size", 256),
            num_labels=head["num_labels"],
            labels=head["labels"],
            num_channels=read_size(document, "num_channels", 3),
            activation=read_activation(document),
            dtype=read_dtype(document),
        )


_DEFAULTS: Mapping[str, tuple[int, ...]] = {
    "depths": (2, 2, 2, 2),
    "sr_ratios": (8, 4, 2, 1),
    "hidden_sizes": (32, 64, 160, 256),
    "patch_sizes": (7, 3, 3, 3),
    "strides": (4, 2, 2, 2),
    "num_attention_heads": (1, 2, 5, 8),
    "mlp_ratios": (4, 4, 4, 4),
}


def _stages(document: Mapping[str, Any]) -> tuple[StageConfig, ...]:
    count = read_size(document, "num_encoder_blocks", 4)
    lists = {key: _list(document, key, count) for key in _DEFAULTS}
    sizes = (read_size(document, "num_channels", 3), *lists["hidden_sizes"])
    for size, heads in zip(sizes[1:], lists["num_attention_heads"], strict=True):
        if size % heads:
            raise ConfigError(f"num_attention_heads: {heads} does not divide the stage's hidden size {size}")
    return tuple(
        StageConfig(
            depth=lists["depths"][i],
            in_size=sizes[i],
            hidden_size=sizes[i + 1],
            num_heads=lists["num_attention_heads"][i],
            ffn_channels=sizes[i + 1] * lists["mlp_ratios"][i],
            patch_size=lists["patch_sizes"][i],
            stride=lists["strides"][i],
            reduction=lists["sr_ratios"][i],
        )
        for i in range(count)
    )


def _list(document: Mapping[str, Any], key: str, count: int) -> list[int]:
    values = document.get(key, _DEFAULTS[key])
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise ConfigError(f"{key}: expected a list of num_encoder_blocks = {count} numbers, got {values!r}")
    return [read_size({key: value}, key) for value in values]
