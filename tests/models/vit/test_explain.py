"""Maps of where each patch is, layer by layer."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.one_shot import Item
from stepwell.models.vit.model import ViT


def image() -> torch.Tensor:
    return torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(4))


def test_without_reduction_every_patch_is_its_own_token(vit: ViT) -> None:
    maps = vit.explain(Item(image(), SubNetwork((4, 4, 0), (48, 48, 0))))
    assert len(maps) == 2
    for each in maps:
        assert each.owner.tolist() == torch.arange(1, 37).view(6, 6).tolist()
        assert bool(each.ran.all())


@pytest.mark.parametrize("reducer", ["merge", "cluster", "super"])
def test_patches_share_as_many_tokens_as_the_layer_runs(vit: ViT, reducer: str) -> None:
    item = Item(image(), vit.config.architecture.full, Reduction(reducer, 0.5))
    schedule = vit.schedule(item.subnet, item.reduction, vit.config.base_grid)
    maps = vit.explain(item)
    assert len(maps) == len(schedule) == 3
    for each, tokens in zip(maps, schedule, strict=True):
        assert each.owner.shape == each.ran.shape == (6, 6)
        assert each.owner.dtype == torch.int64
        assert int(each.owner.min()) >= 1
        assert int(each.owner.max()) < tokens.ffn
        assert bool(each.ran.all())
        if reducer == "merge":
            assert len(each.owner.unique()) == tokens.ffn - 1
    assert len(maps[-1].owner.unique()) < 36


def test_merged_patches_stay_together(vit: ViT) -> None:
    maps = vit.explain(Item(image(), vit.config.architecture.full, Reduction("merge", 0.4)))
    for earlier, later in pairwise(maps):
        for token in earlier.owner.unique():
            assert len(later.owner[earlier.owner == token].unique()) == 1
