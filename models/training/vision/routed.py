"""Training of token routing and slimming: the function behind ``stepwell train routed``.

1. A plain vision transformer learns the scenes (``dense``).
2. Gates and slimming modules join it, and gates that down-sample if the recipe asks for them. Every step runs the whole
   network on a batch, learning from the labels, and the same batch routed and slimmed at budgets drawn for the step,
   learning from the labels and from what the whole network says of it (the sandwich of BigNAS, arXiv 2003.11142). All
   weights go on learning.
3. Every level of the ladders is measured on held-out scenes; the model directory is written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.ladder import Reduction
from stepwell.models.training.vision.config import RoutedConfig
from stepwell.models.training.vision.dense import train_dense
from stepwell.models.training.vision.publish import write_routed
from stepwell.models.training.vision.scenes import Scenes, make_scenes, normalise
from stepwell.models.training.vision.steps import Report, run_steps
from stepwell.models.training.vision.student import Lesson, Student, new_student
from stepwell.models.vit.reducers.gates import GatedReducer, GateRecord

MODEL_FOLDER = "model"


def train(config: RoutedConfig, report: Report = lambda _: None) -> Path:
    """Train both stages, measure, write; returns the model directory, ``output/model``.

    Resumes from checkpoints below ``output``, and then ends with the weights an unbroken run would have. ``report`` is
    called after every optimiser step. Raises ValueError for a recipe and checkpoints that do not fit together.
    """
    student = train_reducers(config, train_dense(config.dense, report), report)
    return write_routed(config, student.vit, config.output / MODEL_FOLDER)


def train_reducers(config: RoutedConfig, dense: Student, report: Report) -> Student:
    """The second stage. Raises ValueError as :func:`~stepwell.models.training.vision.steps.run_steps`."""
    student = new_student(config, config.hf_config())
    student.load_state_dict({**student.state_dict(), **dense.state_dict()})
    student.train()
    run_steps(config, "reducers", student, lambda step: _accumulate(config, student, step), report)
    return student.eval()


def sample_budgets(config: RoutedConfig, step: int) -> dict[str, float]:
    """The budget of each reducer in this step; depends on seed and step alone."""
    draw = random.Random(f"{config.seed}:{step}:budgets")
    span = 1.0 - config.least_budget
    names = ("route", "slim", "downsample") if config.downsample_before else ("route", "slim")
    return {name: config.least_budget + span * draw.random() ** 2 for name in names}


def _accumulate(config: RoutedConfig, student: Student, step: int) -> dict[str, float]:
    # The dense stage has seen the blocks before.
    scenes = make_scenes(config.seed, "train", config.dense_steps + step, config.batch_size)
    torch.manual_seed(config.seed * 1_000_003 + step)
    lesson = student.learn(scenes)
    (lesson.scene_loss + config.token_weight * lesson.patch_loss).backward()
    found = {"full": float(lesson.scene_loss.detach())}
    _set_noise(config, student, step)
    for name, budget in sample_budgets(config, step).items():
        loss = reduced_loss(config, student, scenes, lesson, Reduction(name, budget))
        loss.backward()
        found[f"{name}@{budget:.2f}"] = float(loss.detach())
    return found


def reduced_loss(
    config: RoutedConfig, student: Student, scenes: Scenes, lesson: Lesson, reduction: Reduction
) -> Tensor:
    """Half the cross-entropy with the labels and half that with the whole network's probabilities; and the gates'."""
    logits = student.vit(normalise(scenes.pixels), reduction=reduction)["logits"]
    loss = (F.cross_entropy(logits, scenes.labels) + F.cross_entropy(logits, lesson.logits.softmax(1))) / 2
    reducer = student.vit.reducers[reduction.reducer]
    records = reducer.records if isinstance(reducer, GatedReducer) else []
    return loss + gate_loss(config, records, lesson.relevance) if records else loss


def gate_loss(config: RoutedConfig, records: Sequence[GateRecord], relevance_BN: Tensor) -> Tensor:
    """(C / C_base - budget)^2 with C what the probabilities would run (DiT); and the cross-entropy of the scores with
    what the whole network holds of the patches: the gradient through the gates alone says too little in a short run."""
    expected = torch.stack([record.mean_probability for record in records]).mean()
    wanted = fmean(record.share for record in records)
    taught = [
        F.binary_cross_entropy_with_logits(
            record.scores, relevance_BN if record.patches is None else relevance_BN.gather(1, record.patches)
        )
        for record in records
    ]
    return config.budget_weight * (expected - wanted) ** 2 + config.gate_weight * torch.stack(taught).mean()


def _set_noise(config: RoutedConfig, student: Student, step: int) -> None:
    left = 1.0 - step / (config.noise_share * config.num_steps)
    for reducer in student.vit.reducers.values():
        if isinstance(reducer, GatedReducer):
            reducer.noise = config.noise * max(0.0, left)
