"""Recipes so tiny that a whole run, its measurements included, takes a second or two."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.models.training.vision.config import RoutedConfig, SupernetConfig

TINY = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_channels": 16,
    "batch_size": 8,
    "num_held_out": 24,
    "checkpoint_every": 2,
}


@pytest.fixture
def routed(tmp_path: Path) -> RoutedConfig:
    """Two layers; four steps of each stage."""
    return RoutedConfig(
        output=tmp_path / "run", dense_steps=4, num_steps=4, route_profile=(1.0, 0.5), slim_before=(1,), **TINY
    )


@pytest.fixture
def supernet(tmp_path: Path) -> SupernetConfig:
    """Two depths, two widths, two numbers of heads; four steps."""
    return SupernetConfig(
        output=tmp_path / "supernet", num_steps=4, depths=(1, 2), ffn_widths=(8, 16), heads=(1, 2), **TINY
    )
