"""The configuration of a text encoder, read from a Hugging Face ``config.json``.

One description covers all families; how a family's fields read is in its file of ``families/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stepwell.models.encoder.families import family_of
from stepwell.models.encoder.heads import HeadConfig
from stepwell.models.encoder.pooling import Pooling
from stepwell.models.encoder.positions import RelativePositions, RotaryLayer
from stepwell.models.encoder.projection import ProjectionConfig
from stepwell.models.encoder.sentences import Sentences, read_sentences
from stepwell.models.fields import ConfigError, read_json
from stepwell.models.ladder import Architecture
from stepwell.models.one_shot import Task


class InputError(ValueError):
    """A text that the model cannot take. The message names the field, the value and the remedy."""


@dataclass(frozen=True)
class EncoderConfig:
    """Dimensions and switches of a text encoder. Sizes are counts."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_channels: int
    max_positions: int
    """Rows of the table of positions; the longest text where there is no table."""
    norm_eps: float
    activation: str
    """Of the FFN; a name of :data:`~stepwell.models.kernels.activations.ACTIVATIONS`."""
    pad_token_id: int = 0
    type_vocab_size: int = 0
    """Token types that the checkpoint has, one a segment of a text; 0 = none."""
    embedding_size: int | None = None
    """Width of the embeddings if a projection to ``hidden_size`` follows (ALBERT); None = ``hidden_size``, none."""
    projects_before_norm: bool = False
    """That projection has no bias and the embeddings' norm follows it (DeBERTa); else it follows the norm."""
    position_table: bool = True
    """Embeddings of absolute positions are added to those of words."""
    positions_after_padding: bool = False
    """Positions count tokens that are not padding, from ``pad_token_id + 1`` (RoBERTa); else all, from 0."""
    pre_norm: bool = False
    """Norms before each sub-layer and after the last; else after each."""
    norm_bias: bool = True
    attention_bias: bool = True
    ffn_bias: bool = True
    gated_ffn: bool = False
    """``activation(up(x)) * gate(x)`` rather than ``activation(up(x))``."""
    relative: RelativePositions | None = None
    """How disentangled attention sees positions (DeBERTa); None = attention of another kind."""
    rotary: tuple[RotaryLayer, ...] = ()
    """What each layer's rotary attention is like (ModernBERT); empty = attention of another kind."""
    layer_modules: tuple[int, ...] = ()
    """Which stored layer each layer runs (ALBERT shares them). Empty = each its own."""
    head: HeadConfig | None = None
    labels: tuple[str, ...] = ()
    """Names of the classes of a classification head."""
    pooling: Pooling = field(default_factory=Pooling)
    projections: tuple[ProjectionConfig, ...] = ()
    """Dense layers on the embedding, before it is normed."""
    truncates_texts: bool = False
    """See :class:`~stepwell.models.one_shot.OneShotConfig`."""
    max_seq_length: int | None = None
    """Tokens of a text at most by sentence-transformers' configuration; None = it says nothing."""
    dtype: torch.dtype = torch.float32
    """Precision the weights run in unless another is asked for: the stored one, but float32 for float16."""

    @property
    def task(self) -> Task:
        return "encode"

    @property
    def image_size(self) -> tuple[int, int]:
        """It takes texts."""
        return 0, 0

    @property
    def unit_parameters(self) -> tuple[int, int, int]:
        """See :class:`~stepwell.models.one_shot.OneShotConfig`."""
        of_distances = 0 if self.relative is None else self.relative.num_projections
        always = 0
        if self.relative is not None and (convolution := self.relative.convolution) is not None:
            always = convolution.kernel_size * self.hidden_size**2 // convolution.num_groups
        of_head = (4 + of_distances) * self.hidden_size * self.head_dim
        return of_head, (3 if self.gated_ffn else 2) * self.hidden_size, always

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_layer_modules(self) -> int:
        """Layers that the checkpoint stores."""
        return max(self.layer_modules, default=self.num_layers - 1) + 1

    @cached_property
    def architecture(self) -> Architecture:
        """The dimensions ladders are cut from; a key-value head group is one head."""
        return Architecture(self.num_layers, self.num_heads, self.ffn_channels)

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """See :class:`~stepwell.models.one_shot.OneShotConfig`."""
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.projections[-1].out_features if self.projections else self.hidden_size,),
            "last_hidden_state": (-1, self.hidden_size),
        }
        if self.head is not None:
            per_token = self.head.kind != "sequence"
            shapes["logits"] = (-1, self.head.num_outputs) if per_token else (self.head.num_outputs,)
        return shapes

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text."""
        most = self.max_positions - (self.pad_token_id + 1 if self.positions_after_padding else 0)
        return min(most, self.max_seq_length or most)

    def num_tokens(self, shape: Sequence[int]) -> int:
        """Tokens of a text whose ids have this shape. Raises InputError if the model cannot take it."""
        if len(shape) != 1 or shape[0] < 1:
            raise InputError(f"input_ids: expected the ids of one text, shape [n] with n >= 1, got {list(shape)}")
        if shape[0] > self.max_tokens:
            limit, remedy = f"the model takes at most {self.max_tokens}", "shorten the text"
            if self.max_seq_length == self.max_tokens:
                limit += " (max_seq_length of sentence-transformers' configuration)"
            if self.truncates_texts:
                remedy += ", or send it as text, which is cut to that"
            raise InputError(f"input_ids: {shape[0]} tokens, but {limit}; {remedy}")
        return shape[0]

    @classmethod
    def from_hf(cls, document: Mapping[str, Any]) -> EncoderConfig:
        """Read the parsed content of a Hugging Face ``config.json``. Raises ConfigError."""
        return family_of(document.get("model_type")).read(document)

    @classmethod
    def from_directory(cls, directory: Path) -> EncoderConfig:
        """Read ``config.json`` and what sentence-transformers says of embeddings and lengths. Raises ConfigError."""
        file = directory / "config.json"
        document = read_json(file)
        try:
            config = cls.from_hf(document)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
        return config.with_sentences(read_sentences(directory))

    def with_sentences(self, found: Sentences) -> EncoderConfig:
        """This encoder with what sentence-transformers adds. Raises ConfigError unless the sizes agree."""
        size = self.hidden_size
        for projection in found.projections:
            if projection.in_features != size:
                raise ConfigError(
                    f"{projection.folder}/config.json: in_features: expected {size}, the width of what comes before, "
                    f"got {projection.in_features}; restore the file"
                )
            size = projection.out_features
        return replace(
            self,
            pooling=found.pooling,
            projections=found.projections,
            truncates_texts=found.truncates,
            max_seq_length=found.max_seq_length,
        )
