"""Whatever is wrong is named: the field, the value, the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepwell.models.fields import ConfigError
from stepwell.models.ladder import Reduction
from stepwell.models.one_shot import Item
from stepwell.models.vit import load_model, read_config
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.loading import read_vit_config
from stepwell.models.vit.model import ViT
from stepwell.models.vit.timm_config import from_timm
from stepwell.models.weights import ModelLoadError

GOOD = {
    "model_type": "vit",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 8,
    "id2label": {"0": "a", "1": "b"},
}
TIMM = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 64, 64]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "swin"}, r"model_type: 'swin'.*vit, deit, dinov2"),
        ({"hidden_size": 0}, r"hidden_size: .*got 0"),
        ({"num_attention_heads": 5}, r"num_attention_heads: 5 does not divide hidden_size 32"),
        ({"hidden_act": "mish"}, r"hidden_act: 'mish'.*gelu"),
        ({"patch_size": [8, 4]}, r"patch_size: .*square, got \[8, 4\]"),
        ({"image_size": [1, 2, 3]}, r"image_size: expected one number or \[height, width\], got \[1, 2, 3\]"),
        ({"image_size": 4}, r"image_size: .*patch"),
        ({"task": "dream"}, r"task: expected classify, segment or encode, got 'dream'"),
        ({"segmentation_head": {"type": "upernet"}}, r"segmentation_head.type: expected linear or mask_transformer"),
        ({"reducers": ["slim"]}, r"reducers: expected an object of objects, got \['slim'\]"),
        ({"reducers": {"magic": {}}}, r"reducers: 'magic'.*there are: cluster, downsample, merge, route, slim, super"),
        ({"id2label": {"1": "a"}}, r"id2label: .*keys 0, 1"),
        ({"layer_norm_eps": -1}, r"layer_norm_eps: expected a number > 0, got -1"),
    ],
)
def test_configurations(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ConfigError, match=message) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("reducers", "message"),
    [
        ({"super": {"layers": 2}}, r"reducers.super.layers: unknown; known is layers_per_sampling"),
        ({"super": {"layers_per_sampling": 0}}, r"layers_per_sampling: expected a whole number in 1\..*got 0"),
        (
            {"cluster": {"size": 2}},
            r"reducers.cluster.size: unknown; known are num_iterations, num_nearest, tau",
        ),
        ({"cluster": {"tau": 0}}, r"reducers.cluster.tau: expected a number > 0, got 0"),
    ],
)
def test_settings_of_reducers(reducers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViT(ViTConfig.from_hf({**GOOD, "reducers": reducers}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet50"}, r"architecture: 'resnet50'.*vit_SIZE_patchN_PIXELS"),
        ({"architecture": "vit_gigantic_patch14_224"}, r"architecture: .*tiny, small, medium, base, large, huge"),
        ({"model_args": {"class_token": False}}, r"model_args.class_token: not supported"),
        ({"model_args": {"num_heads": 5}}, r"model_args.num_heads: 5 does not divide embed_dim 192"),
        ({"model_args": {"reg_tokens": -1}}, r"reg_tokens: expected a whole number in 0\.\..*got -1"),
        ({"model_args": {"no_embed_class": "yes"}}, r"no_embed_class: expected true or false, got 'yes'"),
        ({"model_args": [1]}, r"model_args: expected an object, got \[1\]"),
        ({"global_pool": "map"}, r"global_pool: expected token or avg, got 'map'"),
        ({"num_classes": -1}, r"num_classes: .*got -1"),
    ],
)
def test_configurations_of_timm(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TIMM, **change}))
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)


def test_timm_names_of_dinov2_and_deit3_say_where_positions_are() -> None:
    plain, registers, deit3 = (
        from_timm({"architecture": name, "num_classes": 0})
        for name in ("vit_small_patch14_dinov2", "vit_base_patch14_reg4_dinov2", "deit3_medium_patch16_224.fb_in1k")
    )
    assert plain.image_size == registers.image_size == (518, 518)
    assert (plain.num_prefix, registers.num_prefix, deit3.num_prefix) == (1, 5, 1)
    assert (plain.prefix_positions, registers.prefix_positions, deit3.prefix_positions) == (True, False, False)
    assert plain.layer_scale
    assert (deit3.hidden_size, deit3.num_heads, deit3.layer_scale) == (512, 8, True)


def test_timm_names_give_dimensions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**TIMM, "architecture": "deit_small_distilled_patch16_224.fb_in1k"})
    )
    config = read_vit_config(tmp_path)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.ffn_channels) == (384, 12, 6, 1536)
    assert (config.image_size, config.patch_size, config.num_prefix) == ((64, 64), 16, 2)
    assert (config.pooling, config.num_labels, config.model_type) == ("cls_and_distillation", 3, "timm")


@pytest.mark.parametrize("shape", [(1, 48, 48), (48, 48), (3, 48, 40), (3, 0, 48)])
def test_shapes_without_interpolation(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"shape: .*\[3, .*got "):
        ViTConfig.from_hf(GOOD).num_tokens(shape)


def test_shapes_with_interpolation() -> None:
    config = ViTConfig.from_hf({**GOOD, "interpolate_pos_encoding": True})
    assert config.num_tokens((3, 16, 40)) == 1 + 2 * 5
    with pytest.raises(ConfigError, match=r"multiples of the patch size 8, got \[3, 20, 40\]; resize or crop"):
        config.num_tokens((3, 20, 40))


def test_items(vit: ViT, make_segmenter: Callable[..., ViT]) -> None:
    full, image = vit.config.architecture.full, torch.zeros(3, 48, 48)
    with pytest.raises(
        ConfigError, match=r"reducer: 'slim' is not one of this model; use one of cluster, merge, super"
    ):
        vit.run([Item(image, full, Reduction("slim", 0.5))], ["logits"])
    with pytest.raises(ConfigError, match=r"output: 'masks' is not one of logits, embedding, last_hidden_state"):
        vit.run([Item(image, full)], ["masks"])
    with pytest.raises(ConfigError, match=r"shape: .*\[3, 48, 48\], got \[3, 48, 56\]; resize the image"):
        vit.run([Item(image, full), Item(torch.zeros(3, 48, 56), full)], ["logits"])
    with pytest.raises(ConfigError, match=r"output: 'embedding' is not one of logits, last_hidden_state"):
        make_segmenter("linear").run([Item(image, full)], ["embedding"])


def test_weights_that_are_not_of_the_configuration(make_pair: Callable[..., Any], tmp_path: Path) -> None:
    pair = make_pair("ViTForImageClassification")
    weights = load_file(pair.path / "model.safetensors")
    document = json.loads((pair.path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(document))
    for change, message in [
        ({"vit.layernorm.bias": None}, r"1 tensors are missing, the first is norm.bias"),
        ({"vit.layernorm.bias": torch.zeros(7)}, r"vit.layernorm.bias has shape \[7\], config.json implies \[32\]"),
        ({"vit.encoder.layer.3.layernorm_before.bias": torch.zeros(32)}, r"unexpected tensor vit.encoder.layer.3"),
    ]:
        changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ModelLoadError, match=message):
            load_model(tmp_path, read_config(tmp_path), torch.float32)
