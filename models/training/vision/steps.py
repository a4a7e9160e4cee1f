"""The optimiser steps of a run on scenes: accumulate, update, checkpoint, report; resume where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from stepwell.models.training import checkpoint
from stepwell.models.training.optimiser import Optimiser
from stepwell.models.training.vision.config import DenseConfig
from stepwell.models.training.vision.scenes import make_scenes


@dataclass(frozen=True)
class SceneProgress:
    """State of a run after an optimiser step."""

    stage: str
    step: int
    """Steps done."""
    num_steps: int
    losses: Mapping[str, float]
    """What this step measured, by name."""
    step_s: float
    """Mean duration of a step of this run in seconds."""

    @property
    def eta_s(self) -> float:
        """Seconds until the last step of the stage at the mean speed so far."""
        return (self.num_steps - self.step) * self.step_s

    def __str__(self) -> str:
        losses = " ".join(f"{name}={value:.3f}" for name, value in self.losses.items())
        left = f"{self.step_s:.2f} s a step, {self.eta_s / 60:.1f} min left"
        return f"{self.stage} {self.step}/{self.num_steps}  {losses}  {left}"


Report = Callable[[SceneProgress], None]
Accumulate = Callable[[int], dict[str, float]]
"""Adds the gradients of one step, by its number; returns what to report."""


def run_steps(config: DenseConfig, stage: str, model: nn.Module, accumulate: Accumulate, report: Report) -> None:
    """All optimiser steps that are still to do.

    Raises ValueError if ``config.output`` holds a checkpoint of another recipe or of other scenes.
    """
    optimiser = Optimiser(config, model, float32=True)
    digest = scenes_digest(config.seed)
    first, started = checkpoint.resume(config, model, optimiser, digest), time.monotonic()
    for step in range(first, config.num_steps):
        losses = accumulate(step)
        optimiser.update(step)
        done = step + 1
        if done % config.checkpoint_every == 0 or done == config.num_steps:
            checkpoint.save(config, model, optimiser, checkpoint.TrainingState(done, digest))
        report(SceneProgress(stage, done, config.num_steps, losses, (time.monotonic() - started) / (done - first)))


def scenes_digest(seed: int) -> str:
    """SHA-256 of a few scenes: another version of a library may draw others from the same seed."""
    return hashlib.sha256(make_scenes(seed, "train", 0, 8).pixels.numpy().tobytes()).hexdigest()
