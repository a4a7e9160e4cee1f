"""From measured accuracies to ``ladder.json`` of a vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from stepwell.models.ladder import LADDER_FORMAT
from stepwell.models.training.chains import best_nested_chain
from stepwell.models.training.vision.sampling import Dimensions
from stepwell.models.vit.config import ViTConfig

ByBudget = Mapping[float, float]
"""Top-1 accuracy by budget, the full budget 1 among them."""


def reducer_ladders(found: Mapping[str, ByBudget], data: str) -> dict[str, Any]:
    """``ladder.json`` with a ladder for every reducer; the one that is best on average over its budgets is default."""
    ladders = {
        name: {
            "reducer": name,
            "levels": [_level({"budget": b}, top1, by_budget[1.0]) for b, top1 in by_budget.items()],
        }
        for name, by_budget in found.items()
    }
    return _document(ladders, max(found, key=lambda name: fmean(found[name].values())), data)


def supernet_ladders(found: Mapping[Dimensions, float], config: ViTConfig, data: str) -> dict[str, Any]:
    """``ladder.json`` of all sub-networks: for every number of channels and heads a ladder over depths, named
    ``w{channels}-h{heads}``; and ``default``, the chain through all of them that wastes least."""
    full = max(found)
    chain = best_nested_chain({d: 1.0 - top1 for d, top1 in found.items()}, lambda d: _weights(config, d))
    ladders = {"default": _ladder(chain, found)}
    for channels, heads in sorted({dimensions[1:] for dimensions in found}):
        depths = sorted(d for d, *rest in found if rest == [channels, heads])
        ladders[f"w{channels}-h{heads}"] = _ladder([(d, channels, heads) for d in depths], found)
    assert chain[-1] == full
    return _document(ladders, "default", data)


def quality(top1: float, full: float) -> float:
    """Accuracy relative to the full model's, at most 1."""
    return min(1.0, top1 / full)


def _weights(config: ViTConfig, dimensions: Dimensions) -> int:
    """Weights of a sub-network's layers."""
    depth, channels, heads = dimensions
    per_head, per_channel, _ = config.unit_parameters
    return depth * (heads * per_head + channels * per_channel)


def _ladder(points: Sequence[Dimensions], found: Mapping[Dimensions, float]) -> dict[str, Any]:
    full = found[max(found)]
    return {"levels": [_level({"layers": d, "ffn": w, "kv_groups": h}, found[d, w, h], full) for d, w, h in points]}


def _level(fields: dict[str, Any], top1: float, full: float) -> dict[str, Any]:
    return {**fields, "quality": round(quality(top1, full), 4), "metric": round(top1, 4)}


def _document(ladders: dict[str, Any], default: str, data: str) -> dict[str, Any]:
    metric = {"name": "top1", "better": "higher", "data": data}
    return {"format": LADDER_FORMAT, "quality_metric": metric, "default": default, "ladders": ladders}
