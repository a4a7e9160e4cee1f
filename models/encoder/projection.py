"""A dense layer on embeddings: the Dense module of sentence-transformers."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.kernels.activations import ACTIVATIONS


@dataclass(frozen=True)
class ProjectionConfig:
    """A linear map of embeddings and an activation."""

    folder: str
    """In the model's directory, where its weights are."""
    in_features: int
    out_features: int
    bias: bool = True
    activation: str | None = "tanh"
    """A name of :data:`~stepwell.models.kernels.activations.ACTIVATIONS`; None = the map alone."""


class Projection(nn.Module):
    """See :class:`ProjectionConfig`."""

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation] if config.activation else None
        self.linear = nn.Linear(config.in_features, config.out_features, bias=config.bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        """[texts, in] -> [texts, out], in the weights' precision."""
        out = F.linear(x_ND.to(self.linear.weight.dtype), self.linear.weight, self.linear.bias)
        return out if self.activation is None else self.activation.apply(out)
