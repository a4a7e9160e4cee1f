"""The same logits and hidden states as transformers, at full budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from stepwell.models.one_shot import Item

CLASSIFIERS = [
    ("ViTForImageClassification", {}),
    ("ViTForImageClassification", {"hidden_act": "gelu_new", "qkv_bias": False}),
    ("DeiTForImageClassification", {}),
    ("DeiTForImageClassificationWithTeacher", {}),
    ("Dinov2ForImageClassification", {}),
    ("Dinov2ForImageClassification", {"use_swiglu_ffn": True}),
]


def images(count: int, height: int = 48, width: int = 48) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def run(vit: Any, pixels: Tensor, wanted: str) -> Tensor:
    items = [Item(image, vit.config.architecture.full) for image in pixels]
    return torch.stack([output.tensors[wanted] for output in vit.run(items, [wanted])])


@pytest.mark.parametrize(("kind", "fields"), CLASSIFIERS)
@pytest.mark.parametrize("packed_bytes", [0, 1 << 24])
def test_logits_are_those_of_transformers(
    make_pair: Callable[..., Any], kind: str, fields: dict[str, Any], packed_bytes: int
) -> None:
    pair, pixels = make_pair(kind, **fields), images(3)
    expected = pair.reference(pixels).logits
    pair.vit.prepare_serving(packed_bytes)
    assert_close(run(pair.vit, pixels, "logits"), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01
