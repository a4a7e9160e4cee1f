"""What the engine tells whoever measures it. Gauges are not pushed: read the engine's properties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from stepwell.schedulers.request import Request
from stepwell.serving.engine.events import FinishEvent

StepKind: TypeAlias = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True)
class StepObservation:
    """One step that was run and committed."""

    kind: StepKind
    """``decode``: every sequence advanced by its newest token; ``prefill``: none did; ``mixed``: some."""
    seconds: float
    """Plan, page reservation and run."""
    predicted_s: float | None
    """The policy's prediction; None without a cost model."""
    points: tuple[str, ...]
    """Names of the operating points of its sequences, in their order."""
    prefill_tokens: int
    """Prompt (or recomputed) tokens that went through the model."""
    generated_tokens: int
    cached_tokens: int
    """Tokens of requests admitted in this step that prefix reuse saved."""
    inter_token_s: Sequence[tuple[str, float]]
    """(SLO class, time since the same request's previous token) of each token after a first."""


class EngineObserver(Protocol):
    """Called on the engine thread; must be quick. An exception is logged and otherwise ignored."""

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        """``event`` is the one its sink received (or would have, if the client is gone)."""

    def request_refused(self, event: FinishEvent, request: Request) -> None:
        """It was refused at submission: on the submitting thread, no sink receives ``event``."""

    def step_finished(self, step: StepObservation) -> None: ...
