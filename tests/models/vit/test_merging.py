"""Token merging against the formula, written out token by token for one image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers.merging import match, merge


def merge_one(
    metric: Tensor, x: Tensor, sizes: list[float], num_merges: int, num_prefix: int
) -> tuple[Tensor, list[float]]:
    """One step for one image: the tokens [T, D] left, in order, and their sizes."""
    unit = [row / row.norm() for row in metric]
    a = [i for i in range(0, len(x), 2) if i >= num_prefix]
    b = [i for i in range(1, len(x), 2) if i >= num_prefix]
    edges = {i: max(b, key=lambda j, i=i: float(unit[i] @ unit[j])) for i in a}
    strongest = sorted(a, key=lambda i: -float(unit[i] @ unit[edges[i]]))[:num_merges]
    left, weights = [], []
    for i in [*range(num_prefix), *(i for i in a if i not in strongest), *b]:
        members = [i, *(m for m in strongest if edges[m] == i)]
        total = sum(sizes[m] for m in members)
        left.append(sum(sizes[m] * x[m] for m in members) / total)
        weights.append(total)
    return torch.stack(left), weights


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_prefix=st.integers(0, 2), num_patches=st.integers(2, 15))
def test_a_step_is_that_of_the_formula(data: st.DataObject, num_prefix: int, num_patches: int) -> None:
    num_tokens = num_prefix + num_patches
    num_merges = data.draw(st.integers(1, num_patches // 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    metric = torch.randn(2, num_tokens, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(2, num_tokens, 4, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 4, (2, num_tokens), generator=generator).double()
    place = match(metric, num_merges, num_prefix)
    merged, merged_sizes = merge(x, sizes, place, num_tokens - num_merges)
    for item in range(2):
        expected = merge_one(metric[item], x[item], sizes[item].tolist(), num_merges, num_prefix)
        assert_close(merged[item], expected[0])
        assert merged_sizes[item].tolist() == expected[1]
    assert place[:, :num_prefix].tolist() == [list(range(num_prefix))] * 2


def tome(vit: ViT, image: Tensor, budget: float) -> Tensor:
    """Logits [classes] of one image, by a network written from the formulas."""
    config, size = vit.config, vit.config.hidden_size
    grid = config.grid(image.shape)
    schedule = vit.schedule(config.architecture.full, Reduction("merge", budget), grid)
    x, sizes = vit.embeddings(image[None], grid)[0], [1.0] * grid.num_tokens
    for layer, tokens in zip(vit._layers(), schedule, strict=True):
        attention, normed = layer.attention, layer.norm1(x)
        q, k, v = (
            proj(normed).view(len(x), config.num_heads, -1).transpose(0, 1)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = q @ k.transpose(1, 2) / math.sqrt(config.head_dim) + torch.tensor(sizes).log()
        x = x + attention.o_proj((logits.softmax(-1) @ v).transpose(0, 1).reshape(-1, size))
        x, sizes = merge_one(k.mean(0), x, sizes, tokens.attention - tokens.ffn, config.num_prefix)
        x = x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.norm2(x))))
    logits_C: Tensor = vit.head.classifier(vit.norm(x[0]))  # type: ignore[union-attr, operator]
    return logits_C


@pytest.mark.parametrize("budget", [0.3, 0.6, 0.9])
def test_the_network_is_that_of_the_formulas(vit: ViT, budget: float) -> None:
    image = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(3))
    (output,) = vit.run([Item(image, vit.config.architecture.full, Reduction("merge", budget))], ["logits"])
    assert_close(output.tensors["logits"], tome(vit, image, budget), atol=1e-4, rtol=1e-4)


def test_the_mean_over_patches_counts_merged_ones(make_pair: Callable[..., Any]) -> None:
    """Merging equal tokens changes nothing that the classifier of DINOv2 reads."""
    vit = make_pair("Dinov2ForImageClassification").vit
    full = vit.config.architecture.full
    position = vit.embeddings.position_embeddings
    position[:, 1:] = position[:, 1:2]
    halves = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(1)).repeat_interleave(24, 2)
    image = halves.expand(3, 48, 48).contiguous()
    plain, merged = vit.run([Item(image, full), Item(image, full, Reduction("merge", 0.6))], ["logits"])
    assert merged.tokens_kept < 0.65 * plain.tokens_kept
    assert_close(merged.tensors["logits"], plain.tensors["logits"], atol=1e-4, rtol=1e-4)


def test_layers_without_attention_merge_by_the_tokens_themselves(vit: ViT) -> None:
    image = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(3))
    subnet = SubNetwork((0, 4, 0), (48, 48, 48))
    (output,) = vit.run([Item(image, subnet, Reduction("merge", 0.5))], ["last_hidden_state"])
    schedule = vit.schedule(subnet, Reduction("merge", 0.5), vit.config.base_grid)
    assert len(output.tensors["last_hidden_state"]) == schedule[-1].ffn < 37
