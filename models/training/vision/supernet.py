"""Sorted training of a vision transformer: one set of weights for every depth x FFN width x number of heads.

SortedNet (arXiv 2309.00255): a sub-network takes the first layers, channels and heads; each step samples some and
accumulates their gradients. The full network is in every step: its quality must suffer least.
"""

from __future__ import annotations

from pathlib import Path

from stepwell.models.training.vision.config import SupernetConfig
from stepwell.models.training.vision.publish import write_supernet
from stepwell.models.training.vision.sampling import box, sample_dimensions
from stepwell.models.training.vision.scenes import make_scenes
from stepwell.models.training.vision.steps import Report, run_steps
from stepwell.models.training.vision.student import Student, new_student

MODEL_FOLDER = "model"


def train(config: SupernetConfig, report: Report = lambda _: None) -> Path:
    """Train, measure every sub-network, write; returns the model directory, ``output/model``. Otherwise as
    :func:`~stepwell.models.training.vision.routed.train`."""
    return write_supernet(config, train_supernet(config, report).vit, config.output / MODEL_FOLDER)


def train_supernet(config: SupernetConfig, report: Report) -> Student:
    """Train from random weights, or go on from ``config.output``'s checkpoint. Raises ValueError as ``run_steps``."""
    student = new_student(config, config.hf_config())
    architecture = student.vit.config.architecture

    def accumulate(step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        networks = sample_dimensions(config, step)
        for index, dimensions in enumerate(networks):
            scenes = make_scenes(config.seed, "train", step * len(networks) + index, config.batch_size)
            scene_loss, patch_loss = student.losses(scenes, box(architecture, dimensions))
            ((scene_loss + config.token_weight * patch_loss) / len(networks)).backward()
            found["x".join(map(str, dimensions))] = float(scene_loss.detach())
        return found

    run_steps(config, "supernet", student, accumulate, report)
    return student
