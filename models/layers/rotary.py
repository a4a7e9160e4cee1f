"""Rotary position embedding (Su et al. 2021) with the scalings ``linear`` and ``llama3`` (Llama 3.1, Meta 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class RotaryConfig(Protocol):
    """What rotary tables follow from."""

    @property
    def head_dim(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def rope_theta(self) -> float: ...

    @property
    def rope_scaling(self) -> Mapping[str, Any]:
        """``rope_type`` (default, linear, llama3) and its fields."""


def inverse_frequencies(config: RotaryConfig) -> Tensor:
    """Angle per position of each pair of dimensions: float32 [head_dim / 2], radians."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inverse = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling["rope_type"] == "linear":
        return inverse / float(scaling["factor"])
    if scaling["rope_type"] == "llama3":
        return _llama3(inverse, config)
    return inverse


def _llama3(inverse: Tensor, config: RotaryConfig) -> Tensor:
    """Long wavelengths are stretched by ``factor``, short ones kept, those between interpolated."""
    scaling = config.rope_scaling
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inverse
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * inverse / factor + smooth * inverse
    stretched = torch.where(wavelength > original / low, inverse / factor, inverse)
    medium = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(medium, between, stretched)


class RotaryTable:
    """Cosines and sines of every position up to the context length: float32 [max_positions, head_dim].

    The first half of a sine row is negated, as :func:`rotate` wants it.
    """

    def __init__(self, config: RotaryConfig) -> None:
        positions = torch.arange(config.max_positions, dtype=torch.float32)
        angles = torch.outer(positions, inverse_frequencies(config))
        self.cos = angles.cos().repeat(1, 2)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=1)

    def at(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine [T, 1, head_dim] of ``positions``."""
        return self.cos[positions_T].to(dtype).unsqueeze(1), self.sin[positions_T].to(dtype).unsqueeze(1)


def rotate(x_THd: Tensor, cos_T1d: Tensor, sin_T1d: Tensor) -> Tensor:
    """Rotate each head's (i, i + d/2) pairs by the position's angles: ``x cos + swap(x) sin`` with signed sine."""
    half = x_THd.shape[-1] // 2
    return torch.addcmul(x_THd * cos_T1d, x_THd.roll(half, dims=-1), sin_T1d)
