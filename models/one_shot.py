"""The contract of models that answer in one step: encoders of text, classifiers and segmenters of images.

Each item of a packed batch is one text or one image at an operating point of its own. What an item gets does not
depend on its batch-mates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from stepwell.models.ladder import Architecture, Reduction, SubNetwork

Task: TypeAlias = Literal["classify", "segment", "encode"]


@dataclass(frozen=True)
class Item:
    """One text or image to run at one operating point."""

    data: Tensor
    """Token ids, int64 [n]; or pixels, float32 [3, H, W], normalised as the model wants them."""
    subnet: SubNetwork
    reduction: Reduction | None = None
    """None = all tokens run everywhere."""
    token_types: Tensor | None = None
    """Of each token of a text which segment it is of, int64 [n], below ``type_vocab_size`` of the model; None = all of
    the first, 0."""


@dataclass(frozen=True)
class ItemOutput:
    """What a model says of one item."""

    tensors: Mapping[str, Tensor]
    """float32, by name: ``logits`` [classes] (of each token, [n, classes]; of each pixel, [classes, H, W]);
    ``embedding`` [d]; ``last_hidden_state`` [n, D]."""
    tokens_kept: int
    """Tokens that a layer ran, averaged over the layers that ran, rounded; ``num_tokens`` where nothing was reduced."""


class OneShotConfig(Protocol):
    """What a server needs to know of such a model before its weights are there."""

    model_type: str
    dtype: torch.dtype
    """Precision the weights run in unless another is asked for."""
    vocab_size: int
    """Token ids are below it; 0 = it takes images."""

    @property
    def type_vocab_size(self) -> int:
        """Token types are below it; 0 = it has none."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a text at most; 0 = it takes images."""

    @property
    def truncates_texts(self) -> bool:
        """Texts that are tokenised for it are cut to ``max_tokens``, as sentence-transformers does; else those that are
        longer are refused, as token ids always are."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it was made for; (0, 0) = it takes texts."""

    @property
    def task(self) -> Task: ...

    @property
    def architecture(self) -> Architecture:
        """The dimensions ladders are cut from, and the reducers that this model has."""

    @property
    def unit_parameters(self) -> tuple[int, int, int]:
        """Parameters of one head of one layer, of one FFN channel of one layer, and of what runs at every level for
        each token. Biases and norms may be left out."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, if the model has classes and names for them."""

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Names of the outputs the model has, and the shape of each for one item; -1 = follows from the input."""

    def num_tokens(self, shape: Sequence[int]) -> int:
        """Tokens that an item whose data has this shape is to the unreduced model. Raises ValueError naming the field,
        the value and the remedy if the model cannot take it."""


class OneShotModel(Protocol):
    """A model of this kind, ready to run."""

    config: OneShotConfig

    @property
    def dtype(self) -> torch.dtype: ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any ``torch.nn.Module``."""

    def prepare_serving(self, packed_bytes: int, ffn_widths: Collection[int] = ()) -> OneShotModel:
        """Freeze the weights and allow ``packed_bytes`` of packed copies of their slices (see
        :class:`~stepwell.models.decoder.Decoder`)."""

    def run(self, items: Sequence[Item], wanted: Collection[str]) -> list[ItemOutput]:
        """Run a packed batch of items, each at its own sub-network and token budget, nothing padded.

        Args:
            items: any mix, in any order.
            wanted: names of the outputs to compute.

        Returns one output an item, in the order given, with exactly the wanted tensors.
        """
