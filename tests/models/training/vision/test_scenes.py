"""Scenes are a function of their numbers, their labels are what is drawn, and the splits share nothing."""

from __future__ import annotations

import sys

import pytest
import torch

from stepwell.models.training.vision.scenes import Scenes, make_scenes, normalise, patch_labels
from stepwell.models.training.vision.stencils import CLASSES, SIDE, class_stencils, clutter_stencils


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return make_scenes(0, "train", 0, 200)


def test_a_block_depends_on_seed_split_and_number_alone(scenes: Scenes) -> None:
    again = make_scenes(0, "train", 0, 200)
    assert torch.equal(scenes.pixels, again.pixels)
    assert torch.equal(scenes.labels, again.labels)
    for other in (make_scenes(1, "train", 0, 200), make_scenes(0, "held_out", 0, 200), make_scenes(0, "train", 1, 200)):
        assert not (other.pixels == scenes.pixels).flatten(1).all(1).any()
        assert not torch.equal(other.labels, scenes.labels)


def test_the_splits_share_no_digit_image() -> None:
    train, held_out = (torch.cat(class_stencils(split)[-10:]).flatten(1) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 1797
    assert 400 < len(held_out) < 500
    # Two of the 1,797 images may be equal by chance; none is, to the last grey level.
    assert torch.cdist(held_out, train).min() > 0


def test_every_class_has_stencils_that_differ_from_every_other(scenes: Scenes) -> None:
    stencils = class_stencils("train")
    assert len(stencils) == len(CLASSES) == len(set(CLASSES))
    assert all(each.shape[1:] == (SIDE, SIDE) and len(each) for each in stencils)
    firsts = torch.stack([each[0] for each in stencils]).flatten(1)
    distances = torch.cdist(firsts, firsts) + 100 * torch.eye(len(CLASSES))
    assert distances.min() > 3
    assert torch.bincount(scenes.labels, minlength=len(CLASSES)).min() > 0


def test_stencils_are_masks_that_leave_the_border_free() -> None:
    for stencil in (*(each[0] for each in class_stencils("train")), *clutter_stencils()):
        assert 0.0 <= stencil.min() < stencil.max() <= 1.0
        assert stencil.mean() < 0.7


def test_the_object_is_where_its_box_says(scenes: Scenes) -> None:
    # Inside the box pixels vary more than the clutter around it makes them.
    x, y, half = scenes.boxes[:, :1], scenes.boxes[:, 1:2], scenes.boxes[:, 2:] / 2
    assert (half >= 8).all()
    assert (half <= 20).all()
    at = torch.arange(64) + 0.5
    inside = ((at - y).abs() < half)[:, :, None] & ((at - x).abs() < half)[:, None]
    grey = scenes.pixels.float().mean(1)
    spread = [float(image[mask].std() / image[~mask].std()) for image, mask in zip(grey, inside, strict=True)]
    assert torch.tensor(spread).median() > 1.5


def test_patch_labels_mark_the_cells_of_the_object(scenes: Scenes) -> None:
    patches = patch_labels(scenes)
    assert patches.shape == (200, 64)
    marked = patches != len(CLASSES)
    assert torch.equal(marked.sum(1), (scenes.boxes[:, 2] / 8).long() ** 2)
    assert torch.equal(patches[marked], scenes.labels[:, None].expand(-1, 64)[marked])


def test_pixels_are_normalised_as_the_preprocessor_says(scenes: Scenes) -> None:
    pixels = normalise(scenes.pixels)
    assert pixels.dtype is torch.float32
    assert -1.0 <= pixels.min() < 0 < pixels.max() <= 1.0


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class_stencils.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"install stepwell\[train\]"):
        class_stencils("train")
    class_stencils.cache_clear()
