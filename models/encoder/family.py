"""What makes a family of encoders: how its configuration reads, what its tensors are called, which parts it has.

A new family is one file in ``families/`` with a :class:`Family`, and a line in its table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from stepwell.models.encoder.attention import FullAttention, SelfAttention
from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.embeddings import Embeddings
from stepwell.models.encoder.layer import EncoderLayer, FeedForward

_LEGACY_LEAVES = {"gamma": "weight", "beta": "bias"}
"""Names of a norm's parameters in checkpoints that came from TensorFlow."""


@dataclass(frozen=True)
class Names:
    """A table from a checkpoint's names to the modules of :class:`~stepwell.models.encoder.model.Encoder`."""

    prefix: str
    """Of everything below the head, e.g. ``bert.``; checkpoints of the bare encoder go without."""
    layer: str
    """Pattern of a layer's prefix; its one group is the layer's index."""
    layer_parts: Mapping[str, str]
    """Module within a layer -> our module within ``layers.N``."""
    parts: Mapping[str, str]
    """Module outside of the layers -> our module."""
    heads: Mapping[str, Mapping[str, str]]
    """Kind of head -> module -> our module."""
    spare: tuple[str, ...] = ()
    """Prefixes of tensors that may be there and are not used."""

    def translate(self, name: str, config: EncoderConfig) -> str | None:
        """Our name of a tensor (the checkpoint's own where there is none), or None for one to ignore."""
        bare = name.removeprefix(self.prefix)
        path, _, leaf = bare.rpartition(".")
        module = self._module(path, config)
        if module is None:
            return None if bare.startswith(self.spare) else name
        if module == "head.out" and leaf == "weight" and config.head is not None and config.head.tied:
            return None  # the word embeddings, stored a second time
        return f"{module}.{_LEGACY_LEAVES.get(leaf, leaf)}"

    def _module(self, path: str, config: EncoderConfig) -> str | None:
        if found := re.match(self.layer, path):
            part = self.layer_parts.get(path[found.end() :])
            return part and f"layers.{found[1]}.{part}"
        head = self.heads[config.head.kind] if config.head else {}
        return self.parts.get(path) or head.get(path)


@dataclass(frozen=True)
class Family:
    """A family of encoders. The parts default to those of BERT."""

    read: Callable[[Mapping[str, Any]], EncoderConfig]
    """The parsed content of ``config.json`` -> configuration. Raises ConfigError."""
    names: Names
    embeddings: Callable[[EncoderConfig], nn.Module] = Embeddings
    """See :class:`~stepwell.models.encoder.embeddings.Embeddings` for the call it answers; the table of words is its
    ``word``."""
    context: Callable[[EncoderConfig], nn.Module] = FullAttention
    """Called with a :class:`~stepwell.models.encoder.batch.TextBatch`, gives what the attention of every layer shares;
    parameters that layers share live here."""
    attention: Callable[[EncoderConfig, int], nn.Module] = SelfAttention
    """``(config, index of the layer)``; see :class:`~stepwell.models.encoder.attention.SelfAttention` for the call it
    answers."""
    feed_forward: Callable[[EncoderConfig], nn.Module] = FeedForward
    """See :class:`~stepwell.models.encoder.layer.FeedForward` for the call it answers."""
    layer: Callable[[EncoderConfig, int, nn.Module, nn.Module], nn.Module] = EncoderLayer
    """``(config, index, attention, feed_forward)``; see :class:`~stepwell.models.encoder.layer.EncoderLayer`."""
