"""One request to a model that answers as a whole, as the protocols hand it to the data plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from stepwell.serving.engine.job import Array
from stepwell.serving.errors import invalid
from stepwell.serving.parameters import Parameters


@dataclass(frozen=True)
class PredictCall:
    """What a client asked for, free of any protocol's types. Exactly one kind of input is set: pixels, encoded images,
    texts or token ids. All items of a call share its objectives."""

    model: str
    pixel_values: Array | None = None
    """float32 [3, H, W] or [N, 3, H, W], normalised as the model wants them."""
    images: Sequence[bytes] | None = None
    """Files in PNG or JPEG format; they are resized and normalised here."""
    texts: Sequence[str] | None = None
    text_pairs: Sequence[str] | None = None
    """The second segments of ``texts``, one each; None = texts of one segment."""
    input_ids: Array | None = None
    """int64: [total] with ``seq_lens`` (without: one sequence), or padded [N, n] with ``attention_mask``."""
    seq_lens: Array | None = None
    """int64 [N]."""
    attention_mask: Array | None = None
    """int64 [N, n] of 1 (a token) and 0 (padding, at one end of a row)."""
    token_type_ids: Array | None = None
    """int64 in the shape of ``input_ids``: the segment that each token is of; None = all of the first, 0."""
    outputs: tuple[str, ...] = ()
    """Names of the outputs wanted; empty = all that the model has."""
    parameters: Parameters = field(default_factory=dict)
    """SLO, operating point and token budget, as keys of interfaces; other known keys are ignored."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Call metadata, keys in lower case."""
    time_remaining_s: float | None = None
    """What is left of the client's deadline; None = no deadline."""


class Ragged(NamedTuple):
    """Token ids laid end to end: fields of :class:`PredictCall`."""

    input_ids: Array | None = None
    seq_lens: Array | None = None
    token_type_ids: Array | None = None


def ragged(ids: Sequence[Sequence[int]] | None, types: Sequence[Sequence[int]] | None) -> Ragged:
    """Token ids and types as one list a text, None = not given. Raises RequestError (INVALID_ARGUMENT) unless there is
    one type a token."""
    if ids is None:
        if types is not None:
            raise invalid("token_type_ids", "belongs to token ids", len(types), "send token ids beside it")
        return Ragged()
    if types is not None and len(types) != len(ids):
        problem = f"must be one list for each of the {len(ids)} texts"
        raise invalid("token_type_ids", problem, len(types), "send zeros for texts of one segment")
    for i, (of_text, tokens) in enumerate(zip(types or (), ids, strict=False)):
        if len(of_text) != len(tokens):
            problem = f"must have a type for each of the text's {len(tokens)} tokens"
            raise invalid(f"token_type_ids[{i}]", problem, len(of_text), "send one a token")
    lens = np.array([len(tokens) for tokens in ids], np.int64)
    return Ragged(_flat(ids), lens, None if types is None else _flat(types))


def _flat(rows: Sequence[Sequence[int]]) -> Array:
    return np.array([value for row in rows for value in row], np.int64)
