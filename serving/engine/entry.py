"""What the engine keeps of any request: where it stands, its pages, its stopwatch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepwell.schedulers.request import OperatingPoint, Phase, Request
from stepwell.serving.engine.events import FinishReason, Output, Sink
from stepwell.serving.engine.step import Step

if TYPE_CHECKING:
    from stepwell.models.cache import CacheSequence
    from stepwell.models.ladder import SubNetwork


@dataclass(eq=False)
class Entry(ABC):
    """One request. Only the engine thread touches it once it is submitted. Identity, not value, equality.

    Invariant: ``pages`` is set exactly while the request is RUNNING.
    """

    request: Request
    sink: Sink
    best_point: OperatingPoint
    """The best point its client allowed, whether or not the cache could ever hold it."""
    request_id: str = field(init=False)
    token_ids: list[int] = field(default_factory=list, init=False)
    """What its pages hold keys and values of, or will: prompt, then generated tokens."""
    pages: CacheSequence | None = field(default=None, init=False)
    max_depth: int = field(default=0, init=False)
    """Of the deepest point it may switch to; 0 if it may not. Set with ``pages``."""
    client_gone: bool = field(default=False, init=False)
    """Its sink raised; it is sent nothing more."""

    waiting_since_s: float = field(init=False)
    queue_s: float = field(default=0.0, init=False)
    compute_s: float = field(default=0.0, init=False)
    predicted_s: float | None = field(default=None, init=False)
    last_token_s: float = field(default=math.nan, init=False)
    worst_lateness_s: float = field(default=-math.inf, init=False)
    cached_tokens: int = field(default=0, init=False)
    tokens_at: dict[OperatingPoint, int] = field(default_factory=dict, init=False)
    """Generated tokens by the point that they were served at."""

    def __post_init__(self) -> None:
        self.request_id = self.request.request_id
        self.waiting_since_s = self.request.arrival_s

    def start(self, point: OperatingPoint, pages: CacheSequence, now: float) -> None:
        """WAITING -> RUNNING with room for all known tokens; those in ``pages`` already are reused ones."""
        request = self.request
        if not request.has_started:
            request.started_s = now
            self.cached_tokens = pages.num_tokens
        request.phase, request.point, request.computed_tokens = Phase.RUNNING, point, pages.num_tokens
        self.pages = pages
        self.queue_s += now - self.waiting_since_s

    def put_back(self, now: float) -> None:
        """RUNNING -> WAITING. What it was given stays its own; what was computed of it will be computed again, at the
        point where it ran last unless the policy switches again."""
        request = self.request
        self.drop_exits()
        request.phase, request.computed_tokens = Phase.WAITING, 0
        request.preemptions += 1
        self.pages = None
        self.waiting_since_s = now

    def drop_exits(self) -> None:  # noqa: B027 - nothing to drop for most
        """Forget what is kept for going deeper later: it goes with the pages."""

    def computed(self) -> None:  # noqa: B027
        """The step made last has run."""

    @property
    def kept_tokens(self) -> int | None:
        """Tokens that were left by token reduction, of those that were computed; None if that does not apply."""
        return None

    @abstractmethod
    def next_step(self, num_tokens: int, subnet: SubNetwork) -> Step:
        """Run the next ``num_tokens`` tokens (at most all pending ones) at the request's point, whose sub-network as
        far as pages are concerned is ``subnet``."""

    @abstractmethod
    def receive(self, output: Any, now: float) -> tuple[Output | None, FinishReason | None]:
        """Take what the runner returned for a step; returns what to send, and why the request is finished if it is."""
