"""The same logits, hidden states and embeddings as transformers, at full budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import ViTForImageClassification

from stepwell.models.one_shot import Item
from stepwell.models.vit import load_model, read_config
from stepwell.models.vit.loading import save_vit
from stepwell.models.vit.model import ViT

CLASSIFIERS: list[tuple[str, dict[str, Any]]] = [
    ("ViTForImageClassification", {}),
    ("ViTForImageClassification", {"hidden_act": "gelu_new", "qkv_bias": False, "image_size": [48, 24]}),
    ("DeiTForImageClassification", {}),
    ("DeiTForImageClassificationWithTeacher", {}),
    ("Dinov2ForImageClassification", {}),
    ("Dinov2ForImageClassification", {"use_swiglu_ffn": True}),
]


def images(count: int, height: int = 48, width: int = 48) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def run(vit: ViT, pixels: Tensor, wanted: str = "logits") -> Tensor:
    items = [Item(image, vit.config.architecture.full) for image in pixels]
    return torch.stack([output.tensors[wanted] for output in vit.run(items, [wanted])])


@pytest.mark.parametrize(("kind", "fields"), CLASSIFIERS)
def test_logits_are_those_of_transformers(make_pair: Callable[..., Any], kind: str, fields: dict[str, Any]) -> None:
    pair = make_pair(kind, **fields)
    pixels = images(3, *pair.vit.config.image_size)
    expected = pair.reference(pixels).logits
    for packed_bytes in (0, 1 << 24):
        logits = run(pair.vit.prepare_serving(packed_bytes), pixels)
        assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize("kind", ["ViTModel", "DeiTModel", "Dinov2Model"])
def test_models_without_a_head_give_hidden_states_and_an_embedding(make_pair: Callable[..., Any], kind: str) -> None:
    pair, pixels = make_pair(kind), images(2)
    expected = pair.reference(pixels).last_hidden_state
    assert pair.vit.config.task == "encode"
    assert_close(run(pair.vit, pixels, "last_hidden_state"), expected, atol=1e-4, rtol=1e-4)
    assert_close(run(pair.vit, pixels, "embedding"), expected[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72), (16, 24)])
@pytest.mark.parametrize("kind", ["ViTForImageClassification", "Dinov2ForImageClassification"])
def test_positions_are_interpolated_for_other_sizes(
    make_pair: Callable[..., Any], kind: str, height: int, width: int
) -> None:
    asked = {"interpolate_pos_encoding": True} if kind.startswith("ViT") else {}
    pair, pixels = make_pair(kind, extra=asked), images(2, height, width)
    assert_close(run(pair.vit, pixels), pair.reference(pixels, **asked).logits, atol=1e-4, rtol=1e-4)


def to_timm(weights: dict[str, Tensor], global_pool: str) -> dict[str, Tensor]:
    """The tensors of a ViT of transformers under timm's names, queries, keys and values in one matrix.

    Shows that the two layouts mean the same to us; ``test_timm_parity`` has checkpoints and outputs of timm itself.
    """
    table = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "vit.layernorm": "fc_norm" if global_pool == "avg" else "norm",
        "classifier": "head",
    }
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".attention.attention." in name:
            if ".query." in name:
                parts = [weights[name.replace("query", part)] for part in ("query", "key", "value")]
                index, kind = name.split(".")[3], name.split(".")[-1]
                out[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
            continue
        for ours, theirs in table.items():
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_checkpoints_in_timms_layout(make_pair: Callable[..., Any], tmp_path: Path, global_pool: str) -> None:
    pair, pixels = make_pair("ViTForImageClassification", layer_norm_eps=1e-6), images(2)
    weights = load_file(pair.path / "model.safetensors")
    save_file(to_timm(weights, global_pool), tmp_path / "model.safetensors")
    document = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "global_pool": global_pool,
        "model_args": {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 1.5},
        "pretrained_cfg": {"input_size": [3, 224, 224]},
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    vit = load_model(tmp_path, read_config(tmp_path), torch.float32)
    reference = pair.reference
    if global_pool == "token":
        expected = reference(pixels).logits
    else:
        hidden = reference(pixels, output_hidden_states=True).hidden_states[-1]
        expected = reference.classifier(reference.vit.layernorm(hidden[:, 1:].mean(1)))
    assert_close(run(vit, pixels), expected, atol=1e-4, rtol=1e-4)


def test_what_is_saved_opens_here_and_in_transformers(make_pair: Callable[..., Any], tmp_path: Path) -> None:
    pair, pixels = make_pair("ViTForImageClassification"), images(2)
    save_vit(tmp_path, pair.vit, json.loads((pair.path / "config.json").read_text()))
    again = load_model(tmp_path, read_config(tmp_path), torch.float32)
    theirs = ViTForImageClassification.from_pretrained(tmp_path).eval()
    logits = run(pair.vit, pixels)
    assert_close(run(again, pixels), logits, rtol=0, atol=0)
    assert_close(theirs(pixels).logits.detach(), logits, atol=1e-4, rtol=1e-4)
