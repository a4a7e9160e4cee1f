"""Checkpoints of a training run: safetensors for tensors, JSON for the rest; replaced as a whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepwell.models.training.optimiser import Optimiser
from stepwell.models.training.recipe import Recipe

CHECKPOINT_FOLDER = "checkpoint"
_WEIGHTS, _MOMENTS, _STATE = "weights.safetensors", "optimiser.safetensors", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """What a run resumes from, beside weights and moments."""

    step: int
    """Optimiser steps done."""
    corpus_digest: str
    """Identifies the data trained on."""


def save(config: Recipe, model: nn.Module, optimiser: Optimiser, state: TrainingState) -> None:
    """Write ``output/checkpoint``. The one before stays until the new one is complete."""
    folder = config.output / CHECKPOINT_FOLDER
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(_contiguous(model.state_dict()), fresh / _WEIGHTS)
    save_file(_contiguous(optimiser.tensors()), fresh / _MOMENTS)
    document = {"step": state.step, "corpus_digest": state.corpus_digest, "recipe": config.to_json()}
    (fresh / _STATE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def resume(config: Recipe, model: nn.Module, optimiser: Optimiser, corpus_digest: str) -> int:
    """Load ``output/checkpoint`` if there is one; returns the optimiser steps already done.

    Raises ValueError if it belongs to another recipe or another text.
    """
    folder = config.output / CHECKPOINT_FOLDER
    if not (folder / _STATE).is_file():
        return 0
    document = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    _check_same(config, document, corpus_digest)
    model.load_state_dict(load_file(folder / _WEIGHTS))
    optimiser.restore(load_file(folder / _MOMENTS))
    return int(document["step"])


def _check_same(config: Recipe, document: Mapping[str, Any], corpus_digest: str) -> None:
    where, recipe = config.output / CHECKPOINT_FOLDER, config.to_json()
    for key, value in recipe.items():
        if document["recipe"].get(key) != value:
            raise ValueError(
                f"{key}: the checkpoint in {where} was trained with {document['recipe'].get(key)!r}, got {value!r}; "
                "use the same value to resume or another output folder to start anew"
            )
    if document["corpus_digest"] != corpus_digest:
        raise ValueError(f"sources: the text differs from what {where} was trained on; use another output folder")


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
