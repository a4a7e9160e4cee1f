"""The things that scenes are made of, as alpha masks: letters, geometric shapes, handwritten digits, and clutter.

Letters come from the DejaVu faces that matplotlib carries; digits are scikit-learn's 1,797 real images (8x8, NIST).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Split = Literal["train", "held_out"]
Polygon = Sequence[tuple[float, float]]

SIDE = 48
"""Height and width of a stencil in pixels."""
LETTERS = "AEFHKMRX"
SHAPES = ("disc", "square", "triangle", "star", "plus", "crescent", "arrow", "hourglass")
CLASSES = (*(f"letter {c}" for c in LETTERS), *SHAPES, *(f"digit {d}" for d in range(10)))

_FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "DejaVuSans-BoldOblique")
_SUPERSAMPLING = 4
_FILL = 0.86
"""Share of a stencil's side that its longer extent takes."""
_HELD_OUT_DIGITS = 0.25
_DIGIT_SEED = 1797
_NUM_CLUTTER = 96


@lru_cache(maxsize=2)
def class_stencils(split: Split) -> tuple[Tensor, ...]:
    """Per class, in the order of :data:`CLASSES`, its variants: float32 [variants, SIDE, SIDE] in [0, 1].

    Digits of the two splits are different images. Raises ImportError naming the remedy without scikit-learn.
    """
    letters = [torch.stack([_letter(letter, face) for face in _FACES]) for letter in LETTERS]
    shapes = [_draw([polygon], hole)[None] for polygon, hole in map(_shape, SHAPES)]
    return (*letters, *shapes, *_digits(split))


@lru_cache(maxsize=1)
def clutter_stencils() -> Tensor:
    """Strokes, dots and irregular splinters: float32 [variants, SIDE, SIDE] in [0, 1]."""
    rng = np.random.default_rng(0)
    return torch.stack([_draw(list(_splinters(rng, kind % 3))) for kind in range(_NUM_CLUTTER)])


def _letter(letter: str, face: str) -> Tensor:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    side = SIDE * _SUPERSAMPLING
    font = ImageFont.truetype(str(path), size=side)
    box = font.getbbox(letter)
    scale = _FILL * side / max(box[2] - box[0], box[3] - box[1])
    font = ImageFont.truetype(str(path), size=int(side * scale))
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text((side / 2, side / 2), letter, fill=255, font=font, anchor="mm")
    return _shrink(image)


def _shape(name: str) -> tuple[Polygon, Polygon]:
    """Outline of a shape and of the hole in it, in [-1, 1]."""
    disc = [_polar(1.0, 2 * math.pi * k / 48) for k in range(48)]
    wing, bar = 1.0, 0.36
    outlines: dict[str, Polygon] = {
        "disc": disc,
        "crescent": disc,
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0.0, -0.95), (0.98, 0.8), (-0.98, 0.8)],
        "star": [_polar((1.0, 0.4)[k % 2], math.pi * k / 5 - math.pi / 2) for k in range(10)],
        "plus": [
            (x * right, y * down)
            for right, down, order in _QUADRANTS
            for x, y in ((bar, wing), (bar, bar), (wing, bar))[::order]
        ],
        "arrow": [(-1.0, -0.3), (0.1, -0.3), (0.1, -0.85), (1.0, 0.0), (0.1, 0.85), (0.1, 0.3), (-1.0, 0.3)],
        "hourglass": [(-0.8, -0.95), (0.8, -0.95), (0.12, 0.0), (0.8, 0.95), (-0.8, 0.95), (-0.12, 0.0)],
    }
    hole = [(0.42 + 0.82 * x, 0.82 * y) for x, y in disc] if name == "crescent" else []
    return outlines[name], hole


_QUADRANTS = ((1, 1, 1), (1, -1, -1), (-1, -1, 1), (-1, 1, -1))


def _polar(radius: float, angle: float) -> tuple[float, float]:
    return radius * math.cos(angle), radius * math.sin(angle)


def _splinters(rng: np.random.Generator, kind: int) -> Iterator[Polygon]:
    """Polygons of one piece of clutter: two bent strokes, scattered dots, or a jagged splinter."""
    if kind == 0:
        for _ in range(2):
            start, turn, bend = rng.uniform(-0.8, 0.8, 2), rng.uniform(0, 2 * math.pi), rng.uniform(-1.2, 1.2)
            yield _stroke(start, turn, bend, width=rng.uniform(0.06, 0.12))
    elif kind == 1:
        for _ in range(rng.integers(3, 6)):
            (x, y), radius = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.06, 0.16)
            yield [(x + dx, y + dy) for dx, dy in (_polar(radius, math.pi * k / 6) for k in range(12))]
    else:
        angles = np.sort(rng.uniform(0, 2 * math.pi, 7))
        yield [_polar(radius, angle) for radius, angle in zip(rng.uniform(0.15, 0.9, 7), angles, strict=True)]


def _stroke(start: npt.NDArray[np.float64], turn: float, bend: float, width: float) -> Polygon:
    angles = turn + bend * np.linspace(0, 1, 9)
    steps = 0.14 * np.stack([np.cos(angles), np.sin(angles)], 1)
    line = start + np.cumsum(steps, 0)
    side = width / 0.14 * steps[:, ::-1] * (1, -1)
    return [(float(x), float(y)) for x, y in np.concatenate([line + side, (line - side)[::-1]])]


def _draw(polygons: Sequence[Polygon], hole: Polygon = ()) -> Tensor:
    side = SIDE * _SUPERSAMPLING
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for polygon, fill in [*((p, 255) for p in polygons), *(((hole, 0),) if hole else ())]:
        draw.polygon([(side / 2 * (1 + _FILL * x), side / 2 * (1 + _FILL * y)) for x, y in polygon], fill=fill)
    return _shrink(image)


def _shrink(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy()) / 255.0
    return F.avg_pool2d(pixels[None], _SUPERSAMPLING)[0]


def _digits(split: Split) -> list[Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("scikit-learn: its digits are part of the scenes; install stepwell[train]") from error
    images, labels = load_digits(return_X_y=True)
    held_out = np.random.default_rng(_DIGIT_SEED).random(len(labels)) < _HELD_OUT_DIGITS
    chosen = held_out if split == "held_out" else ~held_out
    alpha = torch.from_numpy(images[chosen].astype(np.float32)).view(-1, 1, 8, 8) / 16.0
    inner = int(SIDE * _FILL) // 2 * 2
    large = F.interpolate(alpha, size=(inner, inner), mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    framed = F.pad(large, [(SIDE - inner) // 2] * 4)[:, 0]
    return [framed[torch.from_numpy(labels[chosen] == digit)] for digit in range(10)]
