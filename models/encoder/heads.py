"""What stands on top of an encoder: masked language modelling, or classes of texts or tokens.

All are the same stack, of which each head has some: a dense layer, its activation, a norm, and the output layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stepwell.models.encoder.batch import TextBatch
from stepwell.models.encoder.pooling import PoolingMode, pool
from stepwell.models.fields import ConfigError
from stepwell.models.kernels.linear import SliceLinear

HeadKind = Literal["masked_lm", "sequence", "token"]

_KINDS: Mapping[str, HeadKind | None] = {
    "Model": None,
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
}
"""Ending of the name in ``architectures`` -> kind of head."""


@dataclass(frozen=True)
class HeadConfig:
    """A head: hidden states -> [dense -> activation] -> [norm] -> output."""

    kind: HeadKind
    num_outputs: int
    """Words or classes."""
    activation: str | None = None
    """After the dense layer; None = there is no dense layer."""
    norm: bool = False
    dense_size: int | None = None
    """Width of the dense layer; None = the encoder's."""
    dense_bias: bool = True
    pooling: PoolingMode = "cls"
    """What of a text the head of its classes looks at."""
    tied: bool = False
    """The output layer's weights are the word embeddings."""


class TiedOutput(nn.Module):
    """An output layer that has a bias of its own and borrows the weights of the word embeddings."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self._tables = (table,)  # in a tuple: the parameters stay the table's
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    @property
    def weight(self) -> Tensor:
        return self._tables[0].weight


class Head(nn.Module):
    """See :class:`HeadConfig`."""

    def __init__(self, config: HeadConfig, hidden_size: int, norm_eps: float, table: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        size = (config.dense_size or hidden_size) if config.activation else hidden_size
        self.dense = nn.Linear(hidden_size, size, bias=config.dense_bias) if config.activation else None
        self.norm = nn.LayerNorm(size, norm_eps) if config.norm else None
        self.out = TiedOutput(table) if config.tied else nn.Linear(size, config.num_outputs)

    def forward(self, x_TD: Tensor, batch: TextBatch, linear: SliceLinear) -> Tensor:
        """Hidden states [T, D] -> logits [T, outputs], or [texts, outputs] of a sequence head."""
        x = x_TD
        if self.config.kind == "sequence":
            x = pool(x_TD, batch, self.config.pooling).to(x_TD.dtype)
        if self.dense is not None:
            x = linear.rows(x, [(self.dense, 0, len(self.dense.weight))], self.config.activation)[0]
        if self.norm is not None:
            x = self.norm(x)
        return linear.rows(x, [(self.out, 0, self.config.num_outputs)])[0]


def read_head_kind(document: Mapping[str, Any]) -> HeadKind | None:
    """The kind of head that ``architectures`` of ``config.json`` names; None = no head. Raises ConfigError."""
    names = document.get("architectures") or ["Model"]
    name = names[0] if isinstance(names, list) else names
    for ending, kind in _KINDS.items():
        if isinstance(name, str) and name.endswith(ending):
            return kind
    raise ConfigError(f"architectures: {name!r} is not supported; supported are names that end in {', '.join(_KINDS)}")


def read_labels(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes, from ``id2label`` or ``num_labels``. Raises ConfigError."""
    labels = document.get("id2label")
    if labels is None:
        number = document.get("num_labels", 2)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"num_labels: expected a whole number >= 1, got {number!r}")
        return tuple(f"LABEL_{index}" for index in range(number))
    if not isinstance(labels, dict) or set(labels) != {str(index) for index in range(len(labels))} or not labels:
        raise ConfigError(f"id2label: expected an object with keys '0', '1', ... one a class, got {labels!r}")
    return tuple(str(labels[str(index)]) for index in range(len(labels)))
