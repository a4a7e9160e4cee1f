"""Tokens of a corpus as one stream, and the windows of it that a training step reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from stepwell.models.training.bpe import END_OF_TEXT_ID

TokenStream = npt.NDArray[np.int64]


def token_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenStream:
    """End of text, document, end of text, document, ..., end of text: int64 [N]."""
    stream = [END_OF_TEXT_ID]
    for encoding in tokenizer.encode_batch(list(texts)):
        stream += [*encoding.ids, END_OF_TEXT_ID]
    return np.array(stream, dtype=np.int64)


class Windows:
    """Windows of a token stream in a shuffled order that only the seed decides; each epoch has its own order."""

    def __init__(self, stream: TokenStream, seed: int) -> None:
        self._stream = torch.from_numpy(stream)
        self._seed = seed

    def batch(self, indices: Iterable[int], length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [B, length] each, of the windows with these running numbers (no upper bound).

        Raises ValueError if the stream is shorter than one window.
        """
        starts = [self._start(index, length) for index in indices]
        inputs = torch.stack([self._stream[start : start + length] for start in starts])
        targets = torch.stack([self._stream[start + 1 : start + length + 1] for start in starts])
        return inputs, targets

    def _start(self, index: int, length: int) -> int:
        """First token of window ``index``: epochs follow each other, each with its own order and offset."""
        num_windows = (len(self._stream) - 1) // length - 1
        if num_windows < 1:
            raise ValueError(f"sources: {len(self._stream)} tokens are too few for windows of {length}; add text")
        epoch, position = divmod(index, num_windows)
        order, offset = _epoch(self._seed, epoch, num_windows, length)
        return int(order[position]) * length + offset


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, num_windows: int, length: int) -> tuple[TokenStream, int]:
    generator = np.random.default_rng((seed, epoch, length))
    return generator.permutation(num_windows), int(generator.integers(length))
