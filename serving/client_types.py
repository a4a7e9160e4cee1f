"""What the typed client returns and raises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Report:
    """What a request was served. Times in milliseconds since its arrival at the server."""

    operating_point: str
    quality: float
    """Of that point, relative to the full model."""
    outcome: str
    """``met`` or ``missed``."""
    finish_reason: str
    """``stop`` or ``length``; ``complete`` for a prediction."""
    slo_ms: float | None
    predicted_ms: float | None
    queue_ms: float
    compute_ms: float
    total_ms: float
    slo_met: bool
    degraded: bool
    """Served below the best point it allowed."""
    ttft_ms: float | None
    tpot_ms: float | None
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    tokens_per_level: Mapping[str, int]
    """Generated tokens by operating point."""
    tokens_kept: int | None = None
    """Tokens that token reduction left of ``prompt_tokens``, averaged over the layers; None for a generation."""


@dataclass(frozen=True)
class Chunk:
    """The next piece of an answer; the last one has the report and nothing else."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """One for each token if asked for, else empty."""
    report: Report | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    report: Report

    @classmethod
    def of(cls, pieces: Iterable[Chunk]) -> Completion:
        """All pieces of one answer put together."""
        chunks = list(pieces)
        report = chunks[-1].report
        assert report is not None, "a stream that ends without error ends with a report"
        return cls(
            "".join(chunk.text for chunk in chunks),
            tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
            tuple(value for chunk in chunks for value in chunk.logprobs),
            report,
        )


@dataclass(frozen=True)
class Prediction:
    """The answer of a model that classifies, segments or encodes."""

    outputs: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]
    """By name, of all items of the request together."""
    report: Report


@dataclass(frozen=True)
class ModelSummary:
    """One line about a model."""

    name: str
    platform: str
    ready: bool
    context_length: int
    """Prompt and generated tokens together; 0 while the model is not loaded."""


@dataclass(frozen=True)
class OperatingPoint:
    """One level of one ladder: all that a request can be served at."""

    name: str
    """``LADDER:LEVEL``, with ``@BUDGET`` where tokens are reduced."""
    quality: float
    """Relative to the full model."""
    metric: float | None
    """The measured task metric; None if it was not measured."""
    cost: float
    """Parameters per token relative to the full model."""
    parameters: int
    """Parameters that run for each token."""
    token_budget: float = 1.0
    """Share of tokens kept."""


@dataclass(frozen=True)
class Ladder:
    """A chain of nested operating points."""

    name: str
    kv: str
    """Whether a generation may change level: ``exact``, ``approximate`` or ``static`` (never)."""
    points: tuple[OperatingPoint, ...]
    """Smallest first."""


@dataclass(frozen=True)
class ModelDescription:
    """A model with all its operating points."""

    name: str
    platform: str
    ready: bool
    context_length: int
    vocab_size: int
    default_ladder: str
    quality_metric: Mapping[str, str]
    """``name``, ``better`` (lower or higher) and ``data`` of what :attr:`OperatingPoint.metric` measures."""
    ladders: tuple[Ladder, ...]
    task: str = "generate"
    """``generate``, ``classify``, ``segment`` or ``encode``."""
    labels: tuple[str, ...] = ()
    """Names of the classes, if there are any."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images it wants; None if it takes none."""


class RequestFailedError(Exception):
    """The server refused or ended a request."""

    def __init__(self, status: str, message: str, retry_after_ms: int | None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        """Name of the gRPC status, e.g. ``INVALID_ARGUMENT``."""
        self.message = message
        self.retry_after_ms = retry_after_ms
        """When trying again may help, in milliseconds; None = unknown or pointless."""
