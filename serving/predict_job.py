"""From a call to what the engine runs, and from what it answers to arrays of all items together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.serving.engine.events import ResultEvent
from stepwell.serving.engine.job import Array
from stepwell.serving.errors import RequestError, Status, invalid
from stepwell.serving.hosted import HostedModel
from stepwell.serving.images import decode_image
from stepwell.serving.predict_call import PredictCall
from stepwell.serving.predict_texts import MAX_ITEMS, sequences, tokenised


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
    if call.text_pairs is not None and call.texts is None:
        raise invalid("text_pair", "is the second segment of a text", given, "send text beside it")
    if call.token_type_ids is not None and call.input_ids is None:
        raise invalid("token_type_ids", "belongs to token ids", given, "send input_ids, or let the server tokenise")
    padding_avoided = 0
    if call.pixel_values is not None:
        items = _pixels(call.pixel_values)
    elif call.images is not None:
        items = await _decoded(hosted, call.images)
    elif call.texts is not None:
        items = await tokenised(hosted, call.texts, call.text_pairs, max_bytes)
    else:
        items, padding_avoided = sequences(hosted, call)
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
            shape = item.shape if hosted.image_input else item.shape[-1:]  # of a text perhaps [2, n], see its job
            counts.append(hosted.predictor.num_tokens(shape))
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
