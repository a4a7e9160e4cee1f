"""One request to a model that answers as a whole, as the protocols hand it to the data plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stepwell.serving.engine.job import Array
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
    input_ids: Array | None = None
    """int64: [total] with ``seq_lens`` (without: one sequence), or padded [N, n] with ``attention_mask``."""
    seq_lens: Array | None = None
    """int64 [N]."""
    attention_mask: Array | None = None
    """int64 [N, n] of 1 (a token) and 0 (padding, at one end of a row)."""
    outputs: tuple[str, ...] = ()
    """Names of the outputs wanted; empty = all that the model has."""
    parameters: Parameters = field(default_factory=dict)
    """SLO, operating point and token budget, as keys of interfaces; other known keys are ignored."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Call metadata, keys in lower case."""
    time_remaining_s: float | None = None
    """What is left of the client's deadline; None = no deadline."""
