"""What the layers start from: words and, where a family has them, positions and token types; summed and normed."""

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
        self.position = nn.Embedding(config.max_positions, size) if config.position_table else None
        self.token_type = nn.Embedding(config.type_vocab_size, size) if config.type_vocab_size else None
        norm_size = config.hidden_size if config.projects_before_norm else size
        self.norm = nn.LayerNorm(norm_size, config.norm_eps, bias=config.norm_bias)
        self.project: nn.Linear | None = None
        if config.embedding_size:
            self.project = nn.Linear(size, config.hidden_size, bias=not config.projects_before_norm)

    def forward(self, batch: TextBatch) -> Tensor:
        """Token ids, positions and token types of a batch -> [T, D]."""
        x = F.embedding(batch.token_ids, self.word.weight)
        if (added := self._added(batch)) is not None:
            x = x + added
        if self.project is None:
            return self._normed(x)
        if self.config.projects_before_norm:
            return self._normed(F.linear(x, self.project.weight))
        return F.linear(self._normed(x), self.project.weight, self.project.bias)

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], self.norm.weight, self.norm.bias, self.norm.eps)

    def _added(self, batch: TextBatch) -> Tensor | None:
        """What is added to the words: of each row [T, E], the same for all [E], or None. A model without token types
        takes no notice of them."""
        types = None if self.token_type is None else self.token_type.weight
        if types is not None and batch.token_types is not None:
            of_rows = F.embedding(batch.token_types, types)
            return of_rows if self.position is None else of_rows + self._placed(batch, self.position.weight)
        if self.position is None:
            return None if types is None else types[0]
        return self._placed(batch, self.position.weight if types is None else self.position.weight + types[0])

    def _placed(self, batch: TextBatch, places: Tensor) -> Tensor:
        return F.embedding(self._positions(batch), places)

    def _positions(self, batch: TextBatch) -> Tensor:
        if not self.config.positions_after_padding:
            return batch.positions
        padding = self.config.pad_token_id
        counted = batch.token_ids != padding
        counts = counted.cumsum(0)
        first_rows = torch.arange(len(counts)) - batch.positions
        before = counts[first_rows] - counted[first_rows].long()
        return (counts - before) * counted + padding
