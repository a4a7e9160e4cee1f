"""A vision transformer in training: its initial weights, and its losses on a block of scenes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.ladder import SubNetwork
from stepwell.models.training.vision.config import DenseConfig
from stepwell.models.training.vision.scenes import Scenes, normalise, patch_labels
from stepwell.models.training.vision.stencils import CLASSES
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.model import ViT


class Student(nn.Module):
    """The network, and a classifier of patches that only training has."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit
        self.patch_classifier = nn.Linear(vit.config.hidden_size, len(CLASSES) + 1)

    def losses(self, scenes: Scenes, subnet: SubNetwork | None = None) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the scenes, and of their patches, at full budget."""
        return self.logits_and_losses(scenes, subnet)[1:]

    def logits_and_losses(self, scenes: Scenes, subnet: SubNetwork | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`losses`, behind the logits [N, classes] of the scenes."""
        found = self.vit(normalise(scenes.pixels), subnet, wanted=("logits", "last_hidden_state"))
        patches = self.patch_classifier(found["last_hidden_state"][:, 1:])
        return (
            found["logits"],
            F.cross_entropy(found["logits"], scenes.labels),
            F.cross_entropy(patches.flatten(0, 1), patch_labels(scenes).flatten()),
        )


def new_student(config: DenseConfig, document: dict[str, object]) -> Student:
    """An untrained network of a ``config.json``; the seed decides its weights.

    Positions start as sines of row and column, so that attention can find neighbours at once; projections back to the
    residual stream start smaller.
    """
    student = Student(ViT(ViTConfig.from_hf(document)).float())
    generator = torch.Generator().manual_seed(config.seed)
    for name, parameter in student.named_parameters():
        if name.endswith("position_embeddings"):
            parameter.data.copy_(_sines(config.hidden_size, student.vit.config.base_grid.height))
        elif parameter.ndim == 2 and ".layers." in name:
            to_residual = name.endswith(("o_proj.weight", "fc2.weight"))
            std = 0.02 / math.sqrt(2 * config.num_layers) if to_residual else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)
        elif parameter.ndim > 1:
            bound = 1.0 / math.sqrt(parameter[0].numel())
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return student


def _sines(size: int, side: int) -> Tensor:
    """[1, 1 + side * side, size]: zeros for the class token; half a patch's numbers tell its row, half its column."""
    rates = 100.0 ** -(torch.arange(size // 4) / (size // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = 0.5 * torch.cat([angles.sin(), angles.cos()], 1)
    plane = torch.cat([waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)], 2)
    return F.pad(plane.flatten(0, 1), (0, 0, 1, 0))[None]
