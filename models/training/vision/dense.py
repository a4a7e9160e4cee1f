"""Plain training of a vision transformer on scenes: the first stage of ``stepwell train routed``."""

from __future__ import annotations

from stepwell.models.training.vision.config import DenseConfig
from stepwell.models.training.vision.scenes import make_scenes
from stepwell.models.training.vision.steps import Report, run_steps
from stepwell.models.training.vision.student import Student, new_student


def train_dense(config: DenseConfig, report: Report) -> Student:
    """Train from random weights, or go on from ``config.output``'s checkpoint. Raises ValueError as ``run_steps``."""
    student = new_student(config, config.hf_config())

    def accumulate(step: int) -> dict[str, float]:
        scene_loss, patch_loss = student.losses(make_scenes(config.seed, "train", step, config.batch_size))
        (scene_loss + config.token_weight * patch_loss).backward()
        return {"scenes": float(scene_loss.detach()), "patches": float(patch_loss.detach())}

    run_steps(config, "dense", student, accumulate, report)
    return student
