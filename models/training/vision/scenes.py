"""Scenes of 64 x 64 pixels: one labelled object, large or small, somewhere on a cluttered background.

Most of a scene says nothing about its label, which is what makes leaving out tokens worth learning. Objects lie on a
grid of 8 pixels but for a jitter: so a small transformer without convolutions learns from tens of thousands of scenes.
Scenes come in blocks; a block is a function of (seed, split, number) and of nothing else, so a run can resume anywhere,
and the blocks of the two splits share neither seeds nor digit images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.training.vision.stencils import CLASSES, Split, class_stencils, clutter_stencils

SCENE_SIDE = 64
"""Height and width of a scene in pixels."""
MEAN = STD = 0.5
"""What :func:`normalise` subtracts from and divides pixels in [0, 1] by, for every channel."""

CELL = 8
"""Objects are about a multiple of this many pixels large, and about that far from the border."""

_OBJECT_CELLS = (2, 5)
_JITTER = 1.5
_CLUTTER_SIDES = (8.0, 22.0)
_NUM_CLUTTER = 6
_MAX_TURN = math.radians(12.0)

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scenes:
    """A block of scenes."""

    pixels: Tensor
    """uint8 [N, 3, 64, 64]."""
    labels: Tensor
    """int64 [N], indices of :data:`~stepwell.models.training.vision.stencils.CLASSES`."""
    boxes: Tensor
    """float32 [N, 3]: the object's centre (x, y) and its side, in pixels."""


def make_scenes(seed: int, split: Split, number: int, count: int) -> Scenes:
    """Block ``number`` of a split: ``count`` scenes. Other splits, seeds and numbers draw independently."""
    rng = np.random.default_rng((seed, ("train", "held_out").index(split), number))
    labels = rng.integers(len(CLASSES), size=count)
    variants = class_stencils(split)
    chosen = torch.stack([variants[label][int(rng.integers(len(variants[label])))] for label in labels])
    canvas = _backdrops(rng, count)
    sides, centres = _places(rng, count)
    turns = rng.uniform(-_MAX_TURN, _MAX_TURN, count)
    alpha = _place(chosen, centres, sides, turns)
    canvas = torch.lerp(canvas, _contrasting(rng, canvas, alpha), alpha[:, None])
    pixels = (canvas.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    boxes = torch.from_numpy(np.concatenate([centres, sides[:, None]], 1)).float()
    return Scenes(pixels, torch.from_numpy(labels), boxes)


def patch_labels(scenes: Scenes) -> Tensor:
    """The class of what each patch of 8 x 8 pixels shows, row by row: int64 [N, 64]; ``len(CLASSES)`` for none.

    A target for every token (token labelling: Jiang et al. 2021, arXiv 2104.10858): with the label of the scene alone,
    a transformer of this size learns next to nothing for the first ten thousand scenes.
    """
    middles = torch.arange(CELL // 2, SCENE_SIDE, CELL)
    x, y, half = scenes.boxes[:, :1], scenes.boxes[:, 1:2], scenes.boxes[:, 2:] / 2
    inside_x, inside_y = (middles - x).abs() < half, (middles - y).abs() < half
    inside = inside_y[:, :, None] & inside_x[:, None]
    return torch.where(inside, scenes.labels[:, None, None], len(CLASSES)).flatten(1)


def normalise(pixels: Tensor) -> Tensor:
    """uint8 pixels as the model wants them: float32, (p / 255 - 0.5) / 0.5."""
    return (pixels.float() / 255.0 - MEAN) / STD


def _places(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Sides [N] and centres [N, 2] of the objects in pixels: whole cells of the grid, moved by a pixel or so."""
    cells = rng.integers(_OBJECT_CELLS[0], _OBJECT_CELLS[1] + 1, count)
    corners = np.floor(rng.random((count, 2)) * (SCENE_SIDE // CELL - cells + 1)[:, None]) * CELL
    corners += rng.uniform(-_JITTER, _JITTER, (count, 2))
    sides = cells * float(CELL)
    return sides, corners + sides[:, None] / 2


def _backdrops(rng: np.random.Generator, count: int) -> Tensor:
    """Soft patches of colour with clutter on them, [N, 3, 64, 64]; four each are mirror images of one another."""
    one = _scatter_clutter(rng, _background(rng, -(-count // 4)))
    one = one + 0.03 * torch.from_numpy(rng.standard_normal(one.shape, dtype=np.float32))
    return torch.cat([one, one.flip(2), one.flip(3), one.flip(2, 3)])[:count]


def _background(rng: np.random.Generator, count: int) -> Tensor:
    coarse = torch.from_numpy(rng.random((count, 3, 4, 4), dtype=np.float32))
    level = torch.from_numpy(rng.uniform(0.15, 0.85, (count, 3, 1, 1)).astype(np.float32))
    soft = F.interpolate(coarse - 0.5, size=(SCENE_SIDE, SCENE_SIDE), mode="bilinear", align_corners=True)
    return level + 0.4 * soft


def _scatter_clutter(rng: np.random.Generator, canvas: Tensor) -> Tensor:
    count = len(canvas)
    stencils = clutter_stencils()
    total = count * _NUM_CLUTTER
    chosen = stencils[torch.from_numpy(rng.integers(len(stencils), size=total))]
    sides, centres = rng.uniform(*_CLUTTER_SIDES, total), rng.uniform(0, SCENE_SIDE, (total, 2))
    alpha = _place(chosen, centres, sides, rng.uniform(-math.pi, math.pi, total))
    alpha = alpha * torch.from_numpy(rng.uniform(0.4, 0.9, (total, 1, 1)).astype(np.float32))
    colours = torch.from_numpy(rng.random((count, _NUM_CLUTTER, 3, 1, 1), dtype=np.float32))
    for index, layer in enumerate(alpha.view(count, _NUM_CLUTTER, 1, SCENE_SIDE, SCENE_SIDE).unbind(1)):
        canvas = torch.lerp(canvas, colours[:, index].expand_as(canvas), layer)
    return canvas


def _contrasting(rng: np.random.Generator, canvas: Tensor, alpha: Tensor) -> Tensor:
    """A colour an object can be told by: at least 0.4 lighter or darker than what it covers, on average."""
    weight = alpha[:, None]
    under = ((canvas * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1e-6)).mean(1, keepdim=True)
    shift = torch.from_numpy(rng.uniform(0.4, 0.6, (len(canvas), 1)).astype(np.float32))
    tint = torch.from_numpy(rng.uniform(-0.15, 0.15, (len(canvas), 3)).astype(np.float32))
    colour = torch.where(under < 0.5, under + shift, under - shift) + tint
    return colour[:, :, None, None].expand_as(canvas)


def _place(stencils: Tensor, centres: Floats, sides: Floats, turns: Floats) -> Tensor:
    """Stencils [N, s, s] turned, scaled to ``sides`` and put at ``centres`` (x, y): [N, 64, 64]."""
    scale = SCENE_SIDE / sides
    cos, sin = np.cos(turns) * scale, np.sin(turns) * scale
    x, y = (2 * centres / SCENE_SIDE - 1).T
    rows = [[cos, -sin, -(cos * x - sin * y)], [sin, cos, -(sin * x + cos * y)]]
    theta = torch.from_numpy(np.moveaxis(np.array(rows), 2, 0)).float()
    grid = F.affine_grid(theta, [len(stencils), 1, SCENE_SIDE, SCENE_SIDE], align_corners=False)
    return F.grid_sample(stencils[:, None], grid, align_corners=False)[:, 0]
