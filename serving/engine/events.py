"""What the engine tells the one who submitted a request: tokens as they come, then how it ended."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from stepwell.serving.engine.step import ItemResult
from stepwell.serving.errors import RequestError

FinishReason: TypeAlias = Literal["stop", "length", "complete", "cancelled", "error", "expired", "shed"]
"""``stop``: end-of-sequence token or stop string. ``length``: max_tokens reached. ``complete``: answered as a whole.
The others carry an error."""


class Outcome(enum.Enum):
    """How a request ended, as counted. The value is the metric label."""

    MET = "met"
    """Finished, and within its SLO (or it had none)."""
    MISSED = "missed"
    """Finished, but later than its SLO."""
    SHED = "shed"
    """Refused at once: the queue is full, or its deadline cannot be met."""
    EXPIRED = "expired"
    """Dropped because a deadline passed, or because the server stopped."""
    CANCELLED = "cancelled"
    """The client cancelled it or went away."""
    FAILED = "failed"
    """Our fault."""


@dataclass(frozen=True)
class Report:
    """What a request was served, filled by the engine when it ends. Times are since its arrival."""

    operating_point: str
    """The point it was served at last; empty if it was never computed."""
    quality: float
    """Relative to the full model: the mean over its tokens, each at the point it was served at; 0 if it was never
    computed."""
    slo_ms: float | None
    """End-to-end latency asked for; None if none was."""
    predicted_ms: float | None
    """Predicted duration of the steps it took part in; None without a cost model."""
    queue_ms: float
    """Time spent waiting for the first step, and again after being put back."""
    compute_ms: float
    """Duration of the steps it took part in."""
    total_ms: float
    """Arrival to end."""
    slo_met: bool
    """It finished and met everything it asked for (true without any SLO)."""
    degraded: bool
    """It, or some of its tokens, was served below the best operating point that it allowed."""
    ttft_ms: float | None
    """Time to first token; None before one."""
    tpot_ms: float | None
    """Mean time per output token after the first; None before two."""
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were reused from an earlier request."""
    tokens_per_level: Mapping[str, int]
    """Generated tokens by operating point."""
    worst_lateness_ms: float | None = None
    """Largest (time of token k - its due time) over all tokens; negative = always early; None without a token SLO."""
    preemptions: int = 0
    """Times it was put back because cache pages ran out."""
    tokens_kept: int | None = None
    """Of its prompt tokens, those that token reduction left, averaged over the layers; None for a generation."""


class TokenEvent(NamedTuple):
    """New output of one request. The text lags behind the ids where a character or a stop string may be incomplete."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    """Text that is now safe to show; may be empty. Always empty for a model without tokenizer."""
    logprobs: tuple[float, ...] | None
    """Log-probability of each token, if the request asked for them."""


@dataclass(frozen=True)
class ResultEvent:
    """The whole answer to a request that is not a generation."""

    request_id: str
    outputs: tuple[str, ...]
    """Names of the outputs that it wanted."""
    items: Sequence[ItemResult]
    """One an item, each with one array an output."""


Output: TypeAlias = TokenEvent | ResultEvent
"""What a client waits for."""


@dataclass(frozen=True)
class FinishEvent:
    """The last event of a request; there is exactly one."""

    request_id: str
    outcome: Outcome
    finish_reason: FinishReason
    error: RequestError | None
    """None exactly if the reason is ``stop``, ``length`` or ``complete``."""
    report: Report
    drop_reason: str | None = None
    """Why it was shed or expired: a ``DropReason`` value, ``queue_full`` or ``shutdown``. None otherwise."""


Sink: TypeAlias = Callable[[Output | FinishEvent], None]
"""Receives the events of one request, on the engine thread: it must not block. If it raises, the client counts as
gone and the request is cancelled."""
