"""Segmenters: heads against their formulas, SegFormer against transformers, grids of clusters per request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

from stepwell.models.fields import ConfigError
from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit.heads import LinearSegmenter, MaskTransformer
from stepwell.models.vit.model import ViT

SEGFORMER: dict[str, Any] = {
    "num_encoder_blocks": 3,
    "depths": [2, 1, 1],
    "sr_ratios": [4, 2, 1],
    "hidden_sizes": [8, 16, 24],
    "patch_sizes": [7, 3, 3],
    "strides": [4, 2, 2],
    "num_attention_heads": [1, 2, 3],
    "mlp_ratios": [2, 3, 2],
    "decoder_hidden_size": 16,
}


def images(count: int, height: int = 48, width: int = 48) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def attend(layer: Any, x: Tensor, num_heads: int) -> Tensor:
    """One layer on one sequence [T, D], from the formulas."""
    normed = layer.norm1(x)
    q, k, v = (getattr(layer.attention, f"{name}_proj")(normed) for name in "qkv")
    q, k, v = (part.view(len(x), num_heads, -1).transpose(0, 1) for part in (q, k, v))
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    x = x + layer.attention.o_proj((scores @ v).transpose(0, 1).reshape(x.shape))
    return x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.norm2(x))))


def expected_logits(vit: ViT, image: Tensor) -> Tensor:
    """Logits [classes, H, W] of one image, from the formulas."""
    grid, heads, head = vit.config.base_grid, vit.config.num_heads, vit.head
    x = vit.embeddings(image[None], grid)[0]
    for layer in vit.layers:
        x = attend(layer, x, heads)
    patches = vit.norm(x)[1:]
    if isinstance(head, LinearSegmenter):
        masks = head.classifier(patches)
    else:
        assert isinstance(head, MaskTransformer)
        z = torch.cat([head.proj_dec(patches), head.class_embeddings[0]])
        for layer in head.layers:
            z = attend(layer, z, heads)
        z = head.norm(z)
        p, c = head.proj_patch(z[: len(patches)]), head.proj_classes(z[len(patches) :])
        masks = head.mask_norm((p / p.norm(dim=1, keepdim=True)) @ (c / c.norm(dim=1, keepdim=True)).T)
    plane = masks.T.reshape(1, -1, grid.height, grid.width)
    return F.interpolate(plane, size=image.shape[1:], mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("head", ["linear", "mask_transformer"])
def test_every_pixel_gets_the_logits_of_the_formula(make_segmenter: Callable[..., ViT], head: str) -> None:
    vit = make_segmenter(head, image_size=[48, 32])
    assert vit.config.task == "segment"
    assert vit.config.labels == tuple(f"class {i}" for i in range(5))
    for image, output in zip(
        images(2, 48, 32),
        vit.run([Item(i, vit.config.architecture.full) for i in images(2, 48, 32)], ["logits"]),
        strict=True,
    ):
        assert_close(output.tensors["logits"], expected_logits(vit, image), atol=1e-4, rtol=1e-4)


def test_requests_differ_in_their_grids_of_clusters(make_segmenter: Callable[..., ViT]) -> None:
    vit = make_segmenter("linear", {"reducers": {"cluster": {"tau": 0.5}}})
    full, (image,) = vit.config.architecture.full, images(1)
    budgets = (0.3, 0.5, 0.7, 0.9)
    outputs = vit.run([Item(image, full), *(Item(image, full, Reduction("cluster", b)) for b in budgets)], ["logits"])
    plain = outputs[0].tensors["logits"]
    errors = [float((output.tensors["logits"] - plain).norm() / plain.norm()) for output in outputs[1:]]
    kept = [output.tokens_kept for output in outputs]
    assert kept[1] < kept[2] < kept[3] < kept[4] < kept[0]
    assert all(output.tensors["logits"].shape == (5, 48, 48) for output in outputs)
    assert errors[-1] < 0.6 * errors[0]


def test_merged_patches_share_what_their_token_says(make_segmenter: Callable[..., ViT]) -> None:
    vit = make_segmenter("linear")
    (image,), reduction = images(1), Reduction("merge", 0.4)
    item = Item(image, vit.config.architecture.full, reduction)
    (output,) = vit.run([item], ["last_hidden_state", "logits"])
    owner = vit.explain(item)[-1].owner
    assert isinstance(vit.head, LinearSegmenter)
    plane = vit.head.classifier(output.tensors["last_hidden_state"])[owner].permute(2, 0, 1)[None]
    expected = F.interpolate(plane, size=(48, 48), mode="bilinear", align_corners=False)[0]
    assert_close(output.tensors["logits"], expected)


@pytest.fixture(scope="module")
def segformer(make_pair: Callable[..., Any]) -> Any:
    return make_pair("SegformerForSemanticSegmentation", **SEGFORMER)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 72)])
def test_segformer_is_that_of_transformers(segformer: Any, height: int, width: int) -> None:
    pixels = images(2, height, width)
    raw = segformer.reference(pixels)
    full = segformer.vit.config.architecture.full
    outputs = segformer.vit.prepare_serving(1 << 22).run([Item(image, full) for image in pixels], ["logits"])
    expected = F.interpolate(raw.logits, size=(height, width), mode="bilinear", align_corners=False)
    classes = SegformerImageProcessorPil().post_process_semantic_segmentation(raw, [(height, width)] * 2)
    for output, logits, classes_HW in zip(outputs, expected, classes, strict=True):
        assert_close(output.tensors["logits"], logits, atol=1e-4, rtol=1e-4)
        assert (output.tensors["logits"].argmax(0) == classes_HW).float().mean() > 0.999
        assert len(classes_HW.unique()) > 1


def test_segformer_drops_sub_layers_by_the_item(segformer: Any) -> None:
    model: SegformerForSemanticSegmentation = segformer.reference
    full, (image,) = segformer.vit.config.architecture.full, images(1, 64, 64)
    cut = SubNetwork((1, 1, 0, 1), (1, 0, 1, 1))
    alone = segformer.vit.run([Item(image, cut)], ["logits"])[0]
    mixed = segformer.vit.run([Item(image, full), Item(image, cut), Item(image[:, :32], full)], ["logits"])
    assert_close(mixed[1].tensors["logits"], alone.tensors["logits"], atol=1e-5, rtol=1e-5)
    stages = model.segformer.stages
    with torch.no_grad():
        hooks = [
            stages[0].blocks[1].mlp.register_forward_hook(lambda *a: torch.zeros_like(a[-1])),
            stages[1].blocks[0].attention.register_forward_hook(lambda *a: (torch.zeros_like(a[-1][0]), None)),
        ]
        expected = F.interpolate(model(image[None]).logits, size=(64, 64), mode="bilinear")[0]
        for hook in hooks:
            hook.remove()
    assert_close(alone.tensors["logits"], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(alone.tensors["logits"], mixed[0].tensors["logits"], atol=1e-2)


def test_segformer_says_what_it_does_not_take(segformer: Any) -> None:
    full, (image,) = segformer.vit.config.architecture.full, images(1, 64, 64)
    with pytest.raises(ConfigError, match=r"merge.*reduces no tokens"):
        segformer.vit.run([Item(image, full, Reduction("merge", 0.5))], ["logits"])
    with pytest.raises(ConfigError, match=r"too small.*larger image"):
        segformer.vit.run([Item(image[:, :9, :9], full)], ["logits"])
    with pytest.raises(ConfigError, match=r"embedding.*logits"):
        segformer.vit.run([Item(image, full)], ["embedding"])
