"""What the layers start from: words, positions and token type 0, summed, normed and, if need be, projected."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.encoder.batch import TextBatch
from stepwell.models.encoder.config import EncoderConfig


class Embeddings(nn.Module):
    """BERT's embeddings (Devlin et al. 2019, section 3), factorised in ALBERT (Lan et al. 2020, section 3.1)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.embedding_size or config.hidden_size
        self.config = config
        self.word = nn.Embedding(config.vocab_size, size)
        self.position = nn.Embedding(config.max_positions, size)
        self.token_type = nn.Embedding(config.type_vocab_size, size) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(size, config.norm_eps)
        self.project = nn.Linear(size, config.hidden_size) if config.embedding_size else None

    def forward(self, batch: TextBatch) -> Tensor:
        """Token ids and positions of a batch -> [T, D]."""
        places = self.position.weight
        if self.token_type is not None:
            places = places + self.token_type.weight[0]
        x = F.embedding(batch.token_ids, self.word.weight) + F.embedding(self._positions(batch), places)
        x = F.layer_norm(x, x.shape[1:], self.norm.weight, self.norm.bias, self.norm.eps)
        return x if self.project is None else F.linear(x, self.project.weight, self.project.bias)

    def _positions(self, batch: TextBatch) -> Tensor:
        if not self.config.positions_after_padding:
            return batch.positions
        padding = self.config.pad_token_id
        counted = batch.token_ids != padding
        counts = counted.cumsum(0)
        first_rows = torch.arange(len(counts)) - batch.positions
        before = counts[first_rows] - counted[first_rows].long()
        return (counts - before) * counted + padding
