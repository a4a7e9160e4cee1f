"""The configuration of a vision transformer: ViT, DeiT and DINOv2 of Hugging Face, and timm's (see ``timm_config``).

Keys of our own in ``config.json``, beside those of transformers::

    "task": "segment"                          (default: "classify" with classes, "encode" without)
    "segmentation_head": {"type": "linear"}    or {"type": "mask_transformer", "num_layers": 2}
    "interpolate_pos_encoding": true           images of other sizes than ``image_size`` are taken (always, by DINOv2)
    "reducers": {"slim": {...}}                token reducers: those with weights in the checkpoint, and settings
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from stepwell.models.fields import ConfigError, positive, read_dtype, read_flag, read_size
from stepwell.models.kernels.activations import ACTIVATIONS
from stepwell.models.ladder import Architecture
from stepwell.models.one_shot import Task
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers import TRAINED, TRAINING_FREE

VIT_TYPES = ("vit", "deit", "dinov2")
Pooling = Literal["cls", "cls_and_distillation", "cls_and_mean", "mean"]
"""What the classifier reads: the class token; also the distillation token, by a head of its own, the two averaged
(DeiT); the class token beside the mean of the patches (DINOv2); the mean of the patches, normed after (timm's avg)."""
SegmentationHead = Literal["linear", "mask_transformer"]


@dataclass(frozen=True)
class ViTConfig:
    """Dimensions and switches of a vision transformer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_channels: int
    image_size: tuple[int, int]
    """Height and width in pixels of the position embeddings' grid."""
    patch_size: int
    num_channels: int = 3
    norm_eps: float = 1e-12
    qkv_bias: bool = True
    activation: str = "gelu"
    gated_ffn: bool = False
    """SwiGLU: ``fc2(silu(gate(x)) * fc1(x))``."""
    layer_scale: bool = False
    num_prefix: int = 1
    """Tokens before the patches: class token, distillation token, registers."""
    num_registers: int = 0
    """How many of them are registers (Darcet et al. 2024, arXiv 2309.16588)."""
    prefix_positions: bool = True
    """Whether they have position embeddings; otherwise the patches alone have."""
    interpolate: bool = False
    """Whether position embeddings are interpolated for images of another size."""
    resampling: Literal["bicubic", "bilinear"] = "bicubic"
    """How they are."""
    antialias: bool = False
    """Whether they are smoothed in that, as timm does."""
    pooling: Pooling = "cls"
    num_labels: int = 0
    """Classes; 0 = no head."""
    labels: tuple[str, ...] = ()
    task: Task = "classify"
    segmentation_head: SegmentationHead = "linear"
    decoder_layers: int = 2
    """Layers of the mask transformer."""
    reducer_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> settings, of the reducers with weights in the checkpoint and of training-free ones that need any."""
    dtype: torch.dtype = torch.float32
    model_type: str = "vit"
    vocab_size: int = 0
    max_tokens: int = 0
    type_vocab_size: int = 0
    truncates_texts: bool = False

    def __post_init__(self) -> None:
        if min(self.image_size) < self.patch_size:
            problem = f"image_size: smaller than patch_size {self.patch_size}, got {list(self.image_size)}"
            raise ConfigError(f"{problem}; correct one of them")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @cached_property
    def architecture(self) -> Architecture:
        """The dimensions ladders are cut from; the reducers are the training-free ones and those in the checkpoint."""
        reducers = frozenset(TRAINING_FREE) | self.reducer_settings.keys()
        return Architecture(self.num_layers, self.num_heads, self.ffn_channels, reducers)

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        if self.num_labels:
            shapes["logits"] = (self.num_labels, -1, -1) if self.task == "segment" else (self.num_labels,)
        if self.task != "segment":
            shapes["embedding"] = (self.hidden_size,)
        return {**shapes, "last_hidden_state": (-1, self.hidden_size)}

    @property
    def unit_parameters(self) -> tuple[int, int, int]:
        """Weights of one head of one layer, of one FFN channel of one layer, and of the patch embedding."""
        matrices = 3 if self.gated_ffn else 2
        patch = self.num_channels * self.patch_size**2
        return 4 * self.hidden_size * self.head_dim, matrices * self.hidden_size, patch * self.hidden_size

    @property
    def base_grid(self) -> Grid:
        height, width = (size // self.patch_size for size in self.image_size)
        return Grid(height, width, self.num_prefix)

    def grid(self, shape: Sequence[int]) -> Grid:
        """The tokens of an image of this shape. Raises ConfigError naming the shape and the remedy."""
        size = tuple(shape[1:])
        if len(shape) != 3 or shape[0] != self.num_channels or min(size) < 1:
            raise ConfigError(f"shape: expected an image [{self.num_channels}, height, width], got {list(shape)}")
        if self.interpolate:
            if any(side % self.patch_size for side in size):
                raise ConfigError(
                    f"shape: height and width must be multiples of the patch size {self.patch_size}, got {list(shape)};"
                    " resize or crop the image"
                )
        elif size != self.image_size:
            raise ConfigError(
                f"shape: this model takes images {[self.num_channels, *self.image_size]}, got {list(shape)}; resize "
                "the image, or set interpolate_pos_encoding in config.json"
            )
        return Grid(size[0] // self.patch_size, size[1] // self.patch_size, self.num_prefix)

    def num_tokens(self, shape: Sequence[int]) -> int:
        """Tokens of an image [channels, height, width]: prefix and patches. Raises ConfigError as :meth:`grid`."""
        return self.grid(shape).num_tokens

    @classmethod
    def from_hf(cls, document: Mapping[str, Any]) -> ViTConfig:
        """Read the parsed content of a ``config.json`` of transformers. Raises ConfigError."""
        model_type = document.get("model_type")
        if model_type not in VIT_TYPES:
            raise ConfigError(f"model_type: {model_type!r} is not supported; use one of {', '.join(VIT_TYPES)}")
        kind = next(iter(document.get("architectures") or ()), "")
        dinov2, hidden = model_type == "dinov2", read_size(document, "hidden_size", 768)
        gated = dinov2 and read_flag(document, "use_swiglu_ffn")
        heads = read_size(document, "num_attention_heads", 12)
        if hidden % heads:
            raise ConfigError(f"num_attention_heads: {heads} does not divide hidden_size {hidden}")
        return cls(
            hidden_size=hidden,
            num_layers=read_size(document, "num_hidden_layers", 12),
            num_heads=heads,
            ffn_channels=_dinov2_channels(document, hidden, gated)
            if dinov2
            else read_size(document, "intermediate_size", 3072),
            image_size=_image_size(document),
            patch_size=_patch_size(document, 14 if dinov2 else 16),
            num_channels=read_size(document, "num_channels", 3),
            norm_eps=positive("layer_norm_eps", document.get("layer_norm_eps", 1e-6 if dinov2 else 1e-12)),
            qkv_bias=read_flag(document, "qkv_bias", True),
            activation="silu" if gated else read_activation(document),
            gated_ffn=gated,
            layer_scale=dinov2,
            num_prefix=2 if model_type == "deit" else 1,
            interpolate=dinov2 or read_flag(document, "interpolate_pos_encoding"),
            pooling="cls_and_mean" if dinov2 else "cls_and_distillation" if kind.endswith("WithTeacher") else "cls",
            dtype=read_dtype(document),
            model_type=str(model_type),
            **read_head(document, has_head=not kind.endswith("Model")),
        )


def read_head(document: Mapping[str, Any], has_head: bool) -> dict[str, Any]:
    """The fields about task, classes and trained reducers. Raises ConfigError."""
    labels = _labels(document) if has_head else ()
    task = document.get("task", "classify" if has_head else "encode")
    if task not in ("classify", "segment", "encode"):
        raise ConfigError(f"task: expected classify, segment or encode, got {task!r}")
    head = document.get("segmentation_head") or {"type": "linear"}
    if not isinstance(head, Mapping) or head.get("type") not in ("linear", "mask_transformer"):
        raise ConfigError(f"segmentation_head.type: expected linear or mask_transformer, got {head!r}")
    return {
        "num_labels": read_size(document, "num_labels", len(labels) or 2) if has_head else 0,
        "labels": labels,
        "task": task,
        "segmentation_head": head["type"],
        "decoder_layers": read_size(head, "num_layers", 2),
        "reducer_settings": _reducers(document),
    }


def _labels(document: Mapping[str, Any]) -> tuple[str, ...]:
    names = document.get("id2label")
    if names is None:
        return ()
    if not isinstance(names, Mapping) or {str(i) for i in range(len(names))} != set(map(str, names)):
        raise ConfigError(f"id2label: expected an object with keys 0, 1, ..., got {names!r}")
    return tuple(str({str(key): value for key, value in names.items()}[str(i)]) for i in range(len(names)))


def _reducers(document: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    reducers = document.get("reducers") or {}
    if not isinstance(reducers, Mapping) or not all(isinstance(each, Mapping) for each in reducers.values()):
        raise ConfigError(f"reducers: expected an object of objects, got {reducers!r}")
    known = {*TRAINED, *TRAINING_FREE}
    if unknown := sorted(reducers.keys() - known):
        raise ConfigError(f"reducers: {unknown[0]!r} is not a token reducer; there are: {', '.join(sorted(known))}")
    return dict(reducers)


def read_activation(document: Mapping[str, Any]) -> str:
    """A name of :data:`~stepwell.models.kernels.activations.ACTIVATIONS`. Raises ConfigError."""
    name = document.get("hidden_act", "gelu")
    if name not in tuple(ACTIVATIONS):
        raise ConfigError(f"hidden_act: {name!r} is not supported; use one of {', '.join(ACTIVATIONS)}")
    return str(name)


def _dinov2_channels(document: Mapping[str, Any], hidden: int, gated: bool) -> int:
    channels = int(hidden * positive("mlp_ratio", document.get("mlp_ratio", 4)))
    return (channels * 2 // 3 + 7) // 8 * 8 if gated else channels


def _image_size(document: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _pair(document, "image_size", 224)
    return height, width


def _patch_size(document: Mapping[str, Any], default: int) -> int:
    height, width = _pair(document, "patch_size", default)
    if height != width:
        raise ConfigError(f"patch_size: patches must be square, got {[height, width]}")
    return height


def _pair(document: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    value = document.get(key)
    sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2:
        raise ConfigError(f"{key}: expected one number or [height, width], got {value!r}")
    height, width = (read_size({key: side}, key, default) for side in sides)
    return height, width
