"""Bits per byte of every sub-network on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from stepwell.models.decoder import Decoder
from stepwell.models.training.sampling import rectangle
from stepwell.models.training.windows import TokenStream, token_stream

Grid = Mapping[tuple[int, int], float]
"""Bits per byte by (depth, FFN width)."""

BATCH = 4
"""Windows per forward: bounds memory, changes no result."""


def measure_grid(
    decoder: Decoder, tokenizer: Tokenizer, texts: Sequence[str], widths: Sequence[int], context: int
) -> dict[tuple[int, int], float]:
    """Bits per byte of all depths at all ``widths``.

    The texts, joined by end-of-text tokens, are cut into windows of ``context`` tokens; within one, a token is
    predicted from those before it. The bits of every token (end of text included) over the bytes of the texts.
    """
    stream = token_stream(tokenizer, texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    grid: dict[tuple[int, int], float] = {}
    for width in widths:
        for depth, nats in enumerate(_nats_by_depth(decoder, stream, width, context), 1):
            grid[depth, width] = nats / math.log(2.0) / num_bytes
    return grid


@torch.inference_mode()
def _nats_by_depth(decoder: Decoder, stream: TokenStream, width: int, context: int) -> list[float]:
    """Sum of the tokens' cross-entropies in nats, for each depth from 1: one forward passes them all."""
    depths = decoder.config.num_layers
    subnet = rectangle(decoder.config.architecture, depths, width)
    totals = [0.0] * depths
    for inputs, targets in _batches(torch.from_numpy(stream), context):
        states = decoder.forward_dense(inputs, subnet, range(1, depths))
        for index, state in enumerate(states):
            logits = decoder.logits(state).float().flatten(0, 1)
            totals[index] += float(F.cross_entropy(logits, targets.reshape(-1), reduction="sum"))
    return totals


def _batches(stream: Tensor, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets [B, T] that predict every token of the stream but the first, once."""
    num_windows, rest = divmod(len(stream) - 1, context)
    whole = num_windows * context
    inputs, targets = stream[:whole].view(-1, context), stream[1 : whole + 1].view(-1, context)
    yield from zip(inputs.split(BATCH), targets.split(BATCH), strict=True)
    if rest:
        yield stream[whole:-1].view(1, -1), stream[whole + 1 :].view(1, -1)
