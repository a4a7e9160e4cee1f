"""From a call to what the engine runs: texts are tokenised, images decoded, padding is taken away, all is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stepwell.serving.engine.events import ResultEvent
from stepwell.serving.engine.job import Array
from stepwell.serving.errors import RequestError, Status, invalid
from stepwell.serving.hosted import HostedModel
from stepwell.serving.images import decode_image
from stepwell.serving.predict_call import PredictCall
from stepwell.serving.prompt import INLINE_CHARS, tokenise

MAX_ITEMS = 1024
"""Of one call."""


@dataclass(frozen=True)
class PredictInput:
    """What a call is to be computed from."""

    items: tuple[Array, ...]
    """See :class:`~stepwell.serving.engine.job.OneShotJob`."""
    num_tokens: int
    """Of all items, to the unreduced model."""
    unit_tokens: int
    """Of each item if they are all the same, else of all."""
    reach_tokens: float = 0.0
    """Of its own item, that a token attends to: the mean over all tokens."""
    padding_avoided: int = 0
    """Tokens of padding that came and were not computed."""


async def predict_input(hosted: HostedModel, call: PredictCall, max_bytes: int) -> PredictInput:
    """Check a call's input and make it what the model wants; ``max_bytes``: of a text. Raises RequestError
    (INVALID_ARGUMENT)."""
    given = [name for name in ("pixel_values", "images", "texts", "input_ids") if getattr(call, name) is not None]
    wanted = ("pixel_values", "images") if hosted.image_input else ("texts", "input_ids")
    if len(given) != 1 or given[0] not in wanted:
        raise invalid("inputs", f"exactly one of {' and '.join(wanted)} is needed by this model", given, "send one")
    padding_avoided = 0
    if call.pixel_values is not None:
        items = _pixels(call.pixel_values)
    elif call.images is not None:
        items = await _decoded(hosted, call.images)
    elif call.texts is not None:
        items = await _tokenised(hosted, call.texts, max_bytes)
    else:
        items, padding_avoided = _sequences(hosted, call)
    if not 0 < len(items) <= MAX_ITEMS:
        raise invalid("inputs", f"must be 1 to {MAX_ITEMS} items", len(items), "send several requests")
    return _measured(hosted, items, padding_avoided, given[0])


def wanted_outputs(hosted: HostedModel, call: PredictCall) -> tuple[str, ...]:
    """Names of the outputs to compute: if the call names none, all that the model has, but for images only the logits
    where there are some. Raises RequestError (INVALID_ARGUMENT)."""
    assert hosted.predictor is not None
    known = hosted.predictor.outputs
    for name in call.outputs:
        if name not in known:
            raise invalid("outputs", "unknown output", name, f"request some of {sorted(known)}")
    if call.outputs:
        return call.outputs
    return ("logits",) if hosted.image_input and "logits" in known else tuple(known)


def _measured(hosted: HostedModel, items: Sequence[Array], padding_avoided: int, name: str) -> PredictInput:
    counts = []
    assert hosted.predictor is not None
    for i, item in enumerate(items):
        try:
            counts.append(hosted.predictor.num_tokens(item.shape))
        except ValueError as error:
            raise RequestError(Status.INVALID_ARGUMENT, f"{name}[{i}]: {error}") from error
    if (most := max(counts)) > hosted.item_tokens:
        problem = f"an item may have at most {hosted.item_tokens} tokens"
        raise invalid(name, problem, most, "send less, or raise max_step_tokens in the server's configuration")
    same = min(counts) == most
    total = sum(counts)
    reach = sum(count * count for count in counts) / total
    return PredictInput(tuple(items), total, most if same else total, reach, padding_avoided)


def _pixels(values: Array) -> list[Array]:
    images = values[None] if values.ndim == 3 else values
    if images.ndim != 4 or images.shape[1] != 3:
        problem = "shape must be [3, H, W] or [N, 3, H, W]"
        raise invalid("pixel_values", problem, list(values.shape), "send red, green and blue first")
    if not np.isfinite(images).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(images))[0])
        raise invalid(f"pixel_values{list(at)}", "must be finite", float(images[at]), "send normalised pixels")
    return list(images)


async def _decoded(hosted: HostedModel, files: Sequence[bytes]) -> list[Array]:
    wanted = hosted.image_input
    assert wanted is not None
    if len(files) > MAX_ITEMS:
        raise invalid("images", f"must be 1 to {MAX_ITEMS} items", len(files), "send several requests")

    def decode() -> list[Array]:
        return [decode_image(f"images[{i}]", data, wanted) for i, data in enumerate(files)]

    return await asyncio.get_running_loop().run_in_executor(None, decode)


async def _tokenised(hosted: HostedModel, texts: Sequence[str], max_bytes: int) -> list[Array]:
    if len(texts) > MAX_ITEMS:
        raise invalid("text", f"must be 1 to {MAX_ITEMS} items", len(texts), "send several requests")

    def encode() -> list[Array]:
        return [_checked(hosted, tokenise(hosted, text, max_bytes, f"text[{i}]"), f"text[{i}]") for i, text in numbered]

    numbered = list(enumerate(texts))
    if sum(map(len, texts)) < INLINE_CHARS:
        return encode()
    return await asyncio.get_running_loop().run_in_executor(None, encode)


def _sequences(hosted: HostedModel, call: PredictCall) -> tuple[list[Array], int]:
    ids, lens, mask = call.input_ids, call.seq_lens, call.attention_mask
    assert ids is not None
    if ids.ndim == 2:
        if lens is not None:
            raise invalid("seq_lens", "belongs to ids without padding", list(ids.shape), "send attention_mask instead")
        return _unpadded(hosted, ids, mask)
    if mask is not None:
        raise invalid("attention_mask", "belongs to padded ids [N, n]", list(ids.shape), "send seq_lens instead")
    counts = [len(ids)] if lens is None else [int(n) for n in lens]
    for i, count in enumerate(counts):
        if count < 1:
            raise invalid(f"seq_lens[{i}]", "must be >= 1", count, "leave empty sequences out")
    if sum(counts) != len(ids):
        raise invalid("seq_lens", f"must add up to the {len(ids)} tokens of input_ids", sum(counts), "send all lengths")
    starts = np.cumsum([0, *counts]).tolist()
    return [_checked(hosted, ids[a:b], "input_ids", a) for a, b in pairwise(starts)], 0


def _unpadded(hosted: HostedModel, ids: Array, mask: Array | None) -> tuple[list[Array], int]:
    if mask is None:
        mask = np.ones_like(ids)
    if mask.shape != ids.shape:
        raise invalid("attention_mask", f"must have input_ids' shape {list(ids.shape)}", list(mask.shape), "send that")
    rows = []
    for i, (row, kept) in enumerate(zip(ids, mask, strict=True)):
        if not ((kept == 0) | (kept == 1)).all():
            raise invalid(f"attention_mask[{i}]", "must be 0 or 1", kept.tolist(), "mark tokens by 1, padding by 0")
        (at,) = np.nonzero(kept)
        if not len(at) or at[-1] - at[0] + 1 != len(at):
            problem = "must mark one run of tokens"
            raise invalid(f"attention_mask[{i}]", problem, kept.tolist(), "pad at one end only, and send no empty rows")
        rows.append(_checked(hosted, row[at[0] : at[-1] + 1], f"input_ids[{i}]", int(at[0])))
    return rows, ids.size - sum(map(len, rows))


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


def varies(shape: Sequence[int]) -> bool:
    """Whether items differ in the first dimension of an output: then they are laid end to end, else stacked."""
    return bool(shape) and shape[0] == -1


def joined(hosted: HostedModel, result: ResultEvent) -> dict[str, Array]:
    """The arrays of all items together, by output."""
    assert hosted.predictor is not None
    shapes, together = hosted.predictor.outputs, {}
    for i, name in enumerate(result.outputs):
        arrays = [item.arrays[i] for item in result.items]
        try:
            together[name] = np.concatenate(arrays) if varies(shapes[name]) else np.stack(arrays)
        except ValueError:
            problem = "items of one request must give arrays of one shape"
            raise invalid(name, problem, [a.shape for a in arrays], "send them as requests of their own") from None
    return together
