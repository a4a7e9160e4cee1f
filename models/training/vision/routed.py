"""Training of token routing and slimming: the function behind ``stepwell train routed``.

1. A plain vision transformer learns the scenes (``dense``).
2. Gates and slimming modules join it. Every step runs the whole network on a batch, learning from the labels, and the
   same batch routed and slimmed at budgets drawn for the step, learning from the labels and from what the whole
   network says of it (the sandwich of BigNAS, arXiv 2003.11142). All weights go on learning.
3. Every level of the ladders is measured on held-out scenes; the model directory is written.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.ladder import Reduction
from stepwell.models.training.vision.config import RoutedConfig
from stepwell.models.training.vision.dense import train_dense
from stepwell.models.training.vision.publish import write_routed
from stepwell.models.training.vision.scenes import Scenes, make_scenes, normalise
from stepwell.models.training.vision.steps import Report, run_steps
from stepwell.models.training.vision.student import Student, new_student
from stepwell.models.vit.reducers.routing import Routing

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
    return {name: config.least_budget + span * draw.random() ** 2 for name in ("route", "slim")}


def _accumulate(config: RoutedConfig, student: Student, step: int) -> dict[str, float]:
    # The dense stage has seen the blocks before.
    scenes = make_scenes(config.seed, "train", config.dense_steps + step, config.batch_size)
    torch.manual_seed(config.seed * 1_000_003 + step)
    whole, scene_loss, patch_loss = student.logits_and_losses(scenes)
    (scene_loss + config.token_weight * patch_loss).backward()
    found = {"full": float(scene_loss.detach())}
    for name, budget in sample_budgets(config, step).items():
        loss = reduced_loss(config, student, scenes, Reduction(name, budget), whole.detach(), step)
        loss.backward()
        found[f"{name}@{budget:.2f}"] = float(loss.detach())
    return found


def reduced_loss(
    config: RoutedConfig, student: Student, scenes: Scenes, reduction: Reduction, whole_BC: Tensor, step: int
) -> Tensor:
    """Half the cross-entropy with the labels and half that with the whole network's probabilities; for routing also
    the squared distance of what its gates would run from the budget."""
    routing = student.vit.reducers["route"]
    assert isinstance(routing, Routing)
    routing.noise = max(0.0, 1.0 - step / (config.noise_share * config.num_steps))
    logits = student.vit(normalise(scenes.pixels), reduction=reduction)["logits"]
    loss = (F.cross_entropy(logits, scenes.labels) + F.cross_entropy(logits, whole_BC.softmax(1))) / 2
    if reduction.reducer == "route" and routing.expected_shares:
        expected = torch.stack([mean for mean, _ in routing.expected_shares]).mean()
        wanted = sum(share for _, share in routing.expected_shares) / len(routing.expected_shares)
        loss = loss + config.budget_weight * (expected - wanted) ** 2
    return loss
