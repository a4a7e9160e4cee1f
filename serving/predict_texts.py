"""Texts of a call, tokenised here or sent as token ids, made the items that an encoder runs: unpadded, checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from stepwell.serving.engine.job import Array
from stepwell.serving.errors import invalid
from stepwell.serving.hosted import HostedModel
from stepwell.serving.predict_call import PredictCall
from stepwell.serving.prompt import INLINE_CHARS, tokenise, tokenise_pair

MAX_ITEMS = 1024
"""Of one call."""


async def tokenised(
    hosted: HostedModel, texts: Sequence[str], pairs: Sequence[str] | None, max_bytes: int
) -> list[Array]:
    """Texts, or pairs of texts, -> items (see :class:`~stepwell.serving.engine.job.OneShotJob`); ``max_bytes``: of a
    text. Raises RequestError (INVALID_ARGUMENT)."""
    if len(texts) > MAX_ITEMS:
        raise invalid("text", f"must be 1 to {MAX_ITEMS} items", len(texts), "send several requests")
    if pairs is not None and len(pairs) != len(texts):
        problem = f"must have a second segment for each of the {len(texts)} texts"
        raise invalid("text_pair", problem, len(pairs), "send pairs and single texts as requests of their own")

    def encode() -> list[Array]:
        if pairs is None:
            return [_checked(hosted, tokenise(hosted, t, max_bytes, f"text[{i}]"), f"text[{i}]") for i, t in numbered]
        return [_pair(hosted, text, pair, max_bytes, i) for (i, text), pair in zip(numbered, pairs, strict=True)]

    numbered = list(enumerate(texts))
    if sum(map(len, texts)) + sum(map(len, pairs or ())) < INLINE_CHARS:
        return encode()
    return await asyncio.get_running_loop().run_in_executor(None, encode)


def _pair(hosted: HostedModel, text: str, pair: str, max_bytes: int, index: int) -> Array:
    ids, types = tokenise_pair(hosted, text, pair, max_bytes, index)
    assert hosted.predictor is not None
    if hosted.predictor.type_vocab_size <= 1:  # the separators that the tokenizer puts tell the segments apart
        types = [0] * len(ids)
    checked = _checked(hosted, ids, f"text[{index}]")
    return _typed(hosted, checked, np.asarray(types, np.int64), f"token types of text[{index}]")


def sequences(hosted: HostedModel, call: PredictCall) -> tuple[list[Array], int]:
    """Token ids, laid end to end or padded, -> items as of :func:`tokenised`, and the tokens of padding that were left
    out. Raises RequestError (INVALID_ARGUMENT)."""
    ids, lens, mask, types = call.input_ids, call.seq_lens, call.attention_mask, call.token_type_ids
    assert ids is not None
    if types is not None and types.shape != ids.shape:
        problem = f"must have input_ids' shape {list(ids.shape)}"
        raise invalid("token_type_ids", problem, list(types.shape), "send a type for every token")
    if ids.ndim == 2:
        if lens is not None:
            raise invalid("seq_lens", "belongs to ids without padding", list(ids.shape), "send attention_mask instead")
        return _unpadded(hosted, ids, mask, types)
    if mask is not None:
        raise invalid("attention_mask", "belongs to padded ids [N, n]", list(ids.shape), "send seq_lens instead")
    counts = [len(ids)] if lens is None else [int(n) for n in lens]
    for i, count in enumerate(counts):
        if count < 1:
            raise invalid(f"seq_lens[{i}]", "must be >= 1", count, "leave empty sequences out")
    if sum(counts) != len(ids):
        raise invalid("seq_lens", f"must add up to the {len(ids)} tokens of input_ids", sum(counts), "send all lengths")
    bounds = pairwise(np.cumsum([0, *counts]).tolist())
    return [_part(hosted, ids, types, a, b, "") for a, b in bounds], 0


def _unpadded(hosted: HostedModel, ids: Array, mask: Array | None, types: Array | None) -> tuple[list[Array], int]:
    if mask is None:
        mask = np.ones_like(ids)
    if mask.shape != ids.shape:
        raise invalid("attention_mask", f"must have input_ids' shape {list(ids.shape)}", list(mask.shape), "send that")
    rows, num_tokens = [], 0
    for i, (row, kept) in enumerate(zip(ids, mask, strict=True)):
        if not ((kept == 0) | (kept == 1)).all():
            raise invalid(f"attention_mask[{i}]", "must be 0 or 1", kept.tolist(), "mark tokens by 1, padding by 0")
        (at,) = np.nonzero(kept)
        if not len(at) or at[-1] - at[0] + 1 != len(at):
            problem = "must mark one run of tokens"
            raise invalid(f"attention_mask[{i}]", problem, kept.tolist(), "pad at one end only, and send no empty rows")
        of_row = None if types is None else types[i]
        rows.append(_part(hosted, row, of_row, int(at[0]), int(at[-1]) + 1, f"[{i}]"))
        num_tokens += len(at)
    return rows, ids.size - num_tokens


def _part(hosted: HostedModel, ids: Array, types: Array | None, start: int, end: int, row: str) -> Array:
    """The item of some tokens; ``row`` is the index that names in messages begin with."""
    checked = _checked(hosted, ids[start:end], f"input_ids{row}", start)
    return checked if types is None else _typed(hosted, checked, types[start:end], f"token_type_ids{row}", start)


def _checked(hosted: HostedModel, ids: Sequence[int] | Array, name: str, offset: int = 0) -> Array:
    """int32. ``name`` and ``offset``: what messages call the first id."""
    array = np.asarray(ids, np.int64)
    if not len(array):
        raise invalid(name, "is empty", 0, "send at least one token")
    wrong = np.nonzero((array < 0) | (array >= hosted.vocab_size))[0]
    if len(wrong):
        where, value = f"{name}[{offset + int(wrong[0])}]", int(array[wrong[0]])
        raise invalid(where, f"must be in 0..{hosted.vocab_size - 1}", value, "use the model's vocabulary")
    return array.astype(np.int32)


def _typed(hosted: HostedModel, ids: Array, types: Array, name: str, offset: int = 0) -> Array:
    """Ids [n] and types [n] -> [2, n]; the ids alone if all types are 0. Names as of :func:`_checked`."""
    assert hosted.predictor is not None
    most = max(hosted.predictor.type_vocab_size - 1, 0)
    wrong = np.nonzero((types < 0) | (types > most))[0]
    if len(wrong):
        where, value = f"{name}[{offset + int(wrong[0])}]", int(types[wrong[0]])
        if most == 0:
            remedy = "leave token_type_ids out: it tells segments by the separators between them"
            raise invalid(where, "this model has no token types but 0", value, remedy)
        raise invalid(where, f"must be in 0..{most}", value, "use 0 for the first segment and 1 for the second")
    return np.stack([ids, types.astype(np.int32)]) if types.any() else ids
