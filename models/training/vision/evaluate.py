"""Top-1 accuracy of operating points on held-out scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.layers.staircase import Span
from stepwell.models.training.vision.scenes import Scenes, make_scenes, normalise
from stepwell.models.training.vision.stencils import CLASSES
from stepwell.models.vit.heads import ClassifierHead
from stepwell.models.vit.layers import Layer
from stepwell.models.vit.model import ViT

_BLOCK = 512
_BATCH = 128
"""Scenes per forward: bounds memory, changes no result."""


def held_out_scenes(seed: int, count: int) -> Scenes:
    """The first ``count`` held-out scenes of a seed, which training never draws from."""
    sizes = [min(_BLOCK, count - first) for first in range(0, count, _BLOCK)]
    blocks = [make_scenes(seed, "held_out", number, _BLOCK) for number in range(len(sizes))]
    pixels, labels, boxes = (
        torch.cat([getattr(block, name)[:size] for block, size in zip(blocks, sizes, strict=True)])
        for name in ("pixels", "labels", "boxes")
    )
    return Scenes(pixels, labels, boxes)


def describe(seed: int, count: int) -> str:
    """In words, what was measured on."""
    return (
        f"{count} held-out scenes of seed {seed}: 64 x 64 pixels, one of {len(CLASSES)} letters, shapes and digits of "
        "16 to 40 pixels on clutter"
    )


@torch.inference_mode()
def accuracy(vit: ViT, scenes: Scenes, subnet: SubNetwork | None = None, reduction: Reduction | None = None) -> float:
    """Share of scenes whose largest logit is their class's."""
    right = 0
    for pixels, labels in _batches(scenes):
        right += int((vit(pixels, subnet, reduction)["logits"].argmax(1) == labels).sum())
    return right / len(scenes.labels)


@torch.inference_mode()
def accuracy_by_depth(vit: ViT, scenes: Scenes, channels: int, heads: int, depths: Sequence[int]) -> dict[int, float]:
    """The accuracy at each depth of the networks with so many FFN channels and heads in a layer: one run passes all."""
    right = dict.fromkeys(depths, 0)
    head, linear = vit.head, SliceLinear()
    assert isinstance(head, ClassifierHead)
    for pixels, labels in _batches(scenes):
        x_BTD = vit.embeddings(pixels, vit.config.grid(pixels.shape[1:]))
        x_TD, attend = x_BTD.flatten(0, 1), _Attend(len(pixels))
        for depth, layer in enumerate(list(vit.layers)[: max(depths)], 1):
            assert isinstance(layer, Layer)
            x_TD = layer.run_attention(x_TD, [Span(0, heads, len(x_TD))], attend, linear)
            x_TD = layer.run_ffn(x_TD, [Span(0, channels, len(x_TD))], linear)
            if depth in right:
                pooled = vit.norm(x_TD.unflatten(0, (len(pixels), -1))[:, :1])
                right[depth] += int((head(pooled, pooled[:, 0], None).argmax(1) == labels).sum())
    return {depth: count / len(scenes.labels) for depth, count in right.items()}


def _batches(scenes: Scenes) -> Iterator[tuple[Tensor, Tensor]]:
    for pixels, labels in zip(scenes.pixels.split(_BATCH), scenes.labels.split(_BATCH), strict=True):
        yield normalise(pixels), labels


class _Attend:
    """Attention of equally many tokens for each item (:class:`~stepwell.models.vit.layers.Attend`)."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def __call__(self, span: Span, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor) -> Tensor:
        q, k, v = (t.unflatten(0, (self.num_items, -1)).transpose(1, 2) for t in (q_RHd, k_RHd, v_RHd))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
