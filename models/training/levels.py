"""From measured bits per byte to ``ladder.json``: which levels are offered, with which quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepwell.models.ladder import LADDER_FORMAT, Architecture
from stepwell.models.training.chains import best_nested_chain
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.evaluate import Grid

Point = tuple[int, int]
"""Depth and FFN width."""


def ladder_document(grid: Grid, architecture: Architecture, unit_parameters: tuple[int, int], data: str) -> Any:
    """The content of ``ladder.json``.

    Args:
        grid: bits per byte of every depth at every width.
        architecture: the full model's dimensions.
        unit_parameters: parameters of one layer's attention, and of one of its FFN channels.
        data: what the grid was measured on, in words.
    """
    depth, width = architecture.num_layers, architecture.ffn_channels
    depths, widths = range(1, depth + 1), sorted({width for _, width in grid})
    chain = best_chain(grid, *unit_parameters)
    ladders = {
        "default": _ladder("approximate", chain, grid),
        "depth": _ladder("exact", [(n, width) for n in depths], grid),
        "width": _ladder("approximate", [(depth, w) for w in widths], grid),
    }
    for w in widths[:-1]:
        ladders[f"depth-w{w}"] = _ladder("exact", [(n, w) for n in depths], grid)
    metric = {"name": "bits_per_byte", "better": "lower", "data": data}
    return {"format": LADDER_FORMAT, "quality_metric": metric, "default": "default", "ladders": ladders}


def layer_parameters(config: NestedConfig) -> tuple[int, int]:
    """Parameters of one layer's attention, and of one of its FFN channels (SwiGLU: gate, up and down)."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.hidden_size * config.head_dim * heads, 3 * config.hidden_size


def quality(grid: Grid, point: Point) -> float:
    """Bits per byte of the full model over those of the level, at most 1."""
    return min(1.0, grid[max(grid)] / grid[point])


def best_chain(grid: Grid, attention_parameters: int, channel_parameters: int) -> list[Point]:
    """The chain of bits per byte over parameters: see :func:`~stepwell.models.training.chains.best_nested_chain`."""

    def parameters(point: Point) -> int:
        return point[0] * (attention_parameters + point[1] * channel_parameters)

    return best_nested_chain(grid, parameters)


def _ladder(kv: str, points: Sequence[Point], grid: Grid) -> dict[str, Any]:
    levels = [
        {"layers": d, "ffn": w, "quality": round(quality(grid, (d, w)), 4), "metric": round(grid[d, w], 4)}
        for d, w in points
    ]
    return {"kv": kv, "levels": levels}
