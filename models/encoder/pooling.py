"""From the hidden states of a text's tokens to one embedding, as sentence-transformers lays it down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.encoder.batch import TextBatch

PoolingMode = Literal["mean", "cls"]


@dataclass(frozen=True)
class Pooling:
    """How hidden states become an embedding."""

    mode: PoolingMode = "mean"
    """Mean over the tokens, or the first token's state."""
    normalise: bool = False
    """Divide by the L2 norm."""

    def __call__(
        self, x_TD: Tensor, batch: TextBatch, projections: Iterable[Callable[[Tensor], Tensor]] = ()
    ) -> Tensor:
        """Hidden states [T, D] -> embeddings [texts, D'], float32; ``projections`` come before the norm."""
        embeddings_ND = pool(x_TD, batch, self.mode)
        for project in projections:
            embeddings_ND = project(embeddings_ND)
        embeddings_ND = embeddings_ND.float()
        return F.normalize(embeddings_ND, dim=-1) if self.normalise else embeddings_ND


def pool(x_TD: Tensor, batch: TextBatch, mode: PoolingMode) -> Tensor:
    """One row a text: [T, D] -> [texts, D]; means are float32."""
    if mode == "cls":
        return x_TD[batch.first_rows]
    return torch.stack([x_TD[rows].float().mean(0) for rows in batch.rows])
