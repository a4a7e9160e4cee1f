"""Writes ``data/timm``: tiny random checkpoints in timm's hub layout, saved by timm, with what timm computes from them.

    pip install --target FOLDER --no-deps timm
    PYTHONPATH=FOLDER python tests/models/vit/make_timm_fixture.py

timm imports torchvision for its transforms, which no model needs: where it is missing, a stand-in takes its place.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "data" / "timm"
TINY = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 1.5,
    "num_classes": 5,
}
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "vit": ("vit_tiny_patch16_224", {}, (16, 16)),
    "vit_avg": ("vit_small_patch16_224", {"global_pool": "avg", "qkv_bias": False, "img_size": (16, 12)}, (16, 12)),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {}, (16, 16)),
    "deit3": ("deit3_small_patch16_224", {}, (16, 16)),
    "dinov2": ("vit_small_patch14_dinov2", {"num_classes": 0}, (16, 16)),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {"dynamic_img_size": True}, (12, 24)),
    "vit_registers": ("vit_tiny_patch16_224", {"reg_tokens": 2, "global_pool": "avg", "init_values": 0.1}, (16, 16)),
}
"""Name -> architecture, arguments beside ``TINY``, height and width of the images."""


class _Anything(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(types.ModuleType):
    """A package in which every name is a class of its own."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


def stand_in_for_torchvision() -> None:
    """Make the parts of torchvision that timm imports importable."""
    for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets", ".utils"):
        module = sys.modules[f"torchvision{name}"] = _StandIn(f"torchvision{name}")
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def main() -> None:
    """Write all cases anew."""
    if importlib.util.find_spec("torchvision") is None:
        stand_in_for_torchvision()
    timm, hub = import_module("timm"), import_module("timm.models")
    shutil.rmtree(FOLDER, ignore_errors=True)
    generator, tensors = torch.Generator().manual_seed(11), {}
    for name, (architecture, extra, size) in CASES.items():
        model = timm.create_model(architecture, **{**TINY, **extra}).eval()
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.3
            around_one = "norm" in key and key.endswith("weight")
            weight.data.copy_(1 + noise if around_one else noise)
        hub.save_for_hf(model, FOLDER / name, safe_serialization=True)
        tensors[f"{name}.pixels"] = torch.randn(2, 3, *size, generator=generator)
        with torch.no_grad():
            tensors[f"{name}.output"] = model(tensors[f"{name}.pixels"]).contiguous()
    save_file(tensors, FOLDER / "outputs.safetensors")
    (FOLDER / "about.json").write_text(json.dumps({"timm": timm.__version__, "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
