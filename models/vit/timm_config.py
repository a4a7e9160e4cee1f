"""The configuration of a vision transformer in timm's layout, read without timm.

timm's ``config.json`` names an architecture and lists only what differs from it::

    {"architecture": "vit_small_patch16_224", "num_classes": 1000, "global_pool": "token",
     "model_args": {"img_size": 64}, "pretrained_cfg": {"input_size": [3, 224, 224], ...}}

Dimensions come from the architecture's name, ``model_args`` override them. Supported are the plain ViTs, DeiT (also
distilled), DeiT III, and DINOv2 with and without registers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stepwell.models.fields import ConfigError, positive, read_dtype, read_flag, read_size
from stepwell.models.vit.config import Pooling, ViTConfig, read_head

_SIZES: Mapping[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Size in the architecture's name -> hidden size, layers, heads."""
_NAME = re.compile(
    r"(?P<family>vit|deit|deit3)_(?P<size>tiny|small|medium|base|large|huge)(?P<distilled>_distilled)?_patch(?P<patch>\d+)_"
    r"((?P<pixels>\d+)|(?P<registers>reg4_)?dinov2)(\..*)?"
)
_DINOV2_PIXELS = 518
_KNOWN_ARGS = {
    "img_size",
    "patch_size",
    "in_chans",
    "num_classes",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "init_values",
    "global_pool",
    "dynamic_img_size",
    "no_embed_class",
    "reg_tokens",
    "drop_rate",
    "drop_path_rate",
}


def from_timm(document: Mapping[str, Any]) -> ViTConfig:
    """Read the parsed content of a ``config.json`` of timm. Raises ConfigError."""
    name = document.get("architecture")
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ConfigError(
            f"architecture: {name!r} is not supported; use vit_SIZE_patchN_PIXELS, vit_SIZE_patchN[_reg4]_dinov2, "
            f"deit_SIZE[_distilled]_patchN_PIXELS or deit3_SIZE_patchN_PIXELS with SIZE one of {', '.join(_SIZES)}"
        )
    args = _args(document)
    hidden, layers, heads = _SIZES[match["size"]]
    hidden, heads = read_size(args, "embed_dim", hidden), read_size(args, "num_heads", heads)
    if hidden % heads:
        raise ConfigError(f"model_args.num_heads: {heads} does not divide embed_dim {hidden}")
    dinov2, deit3, distilled = match["pixels"] is None, match["family"] == "deit3", match["distilled"] is not None
    registers = read_size(args, "reg_tokens", 4 if match["registers"] else 0, least=0)
    head = read_head(
        {**document, "num_labels": num_classes} if (num_classes := _classes(document, args)) else document,
        has_head=num_classes > 0,
    )
    return ViTConfig(
        hidden_size=hidden,
        num_layers=read_size(args, "depth", layers),
        num_heads=heads,
        ffn_channels=int(hidden * positive("model_args.mlp_ratio", args.get("mlp_ratio", 4.0))),
        image_size=_image_size(document, args, int(match["pixels"] or _DINOV2_PIXELS)),
        patch_size=read_size(args, "patch_size", int(match["patch"])),
        num_channels=read_size(args, "in_chans", 3),
        norm_eps=1e-6,
        qkv_bias=read_flag(args, "qkv_bias", True),
        layer_scale=dinov2 or deit3 if "init_values" not in args else args["init_values"] is not None,
        num_prefix=(2 if distilled else 1) + registers,
        num_registers=registers,
        prefix_positions=not read_flag(args, "no_embed_class", deit3 or match["registers"] is not None),
        interpolate=read_flag(args, "dynamic_img_size"),
        antialias=True,
        pooling=_pooling(document, args, distilled),
        dtype=read_dtype(document),
        model_type="timm",
        **head,
    )


def _args(document: Mapping[str, Any]) -> Mapping[str, Any]:
    args = document.get("model_args") or {}
    if not isinstance(args, Mapping):
        raise ConfigError(f"model_args: expected an object, got {args!r}")
    if unknown := sorted(args.keys() - _KNOWN_ARGS):
        raise ConfigError(f"model_args.{unknown[0]}: not supported; known are {', '.join(sorted(_KNOWN_ARGS))}")
    return args


def _classes(document: Mapping[str, Any], args: Mapping[str, Any]) -> int:
    fields = {"num_classes": args.get("num_classes", document.get("num_classes"))}
    return read_size(fields, "num_classes", 1000, least=0)


def _image_size(document: Mapping[str, Any], args: Mapping[str, Any], default: int) -> tuple[int, int]:
    size = args.get("img_size")
    if size is None:
        trained_at = (document.get("pretrained_cfg") or {}).get("input_size")
        size = trained_at[1:] if isinstance(trained_at, list) and len(trained_at) == 3 else default
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    height, width = (read_size({"img_size": side}, "img_size") for side in sides)
    return height, width


def _pooling(document: Mapping[str, Any], args: Mapping[str, Any], distilled: bool) -> Pooling:
    pool = args.get("global_pool", document.get("global_pool", "token"))
    if pool not in ("token", "avg"):
        raise ConfigError(f"global_pool: expected token or avg, got {pool!r}")
    if distilled:
        return "cls_and_distillation"
    return "mean" if pool == "avg" else "cls"
