"""What a scheduler knows of a request: its service-level objective, its allowed operating points, its progress.

Plain data, no torch. The serving layer creates a :class:`Request`; only the engine writes its progress fields;
scheduling policies read all of it and write nothing.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class OperatingPoint:
    """All that a request can be served at: one level of one ladder, and a token budget.

    Ordered by ``cost`` first, so ``min``/``max`` of a collection are its cheapest and dearest points.
    """

    cost: float
    """Relative cost per token: parameters run per token over those of the full model, in (0, 1]."""
    quality: float
    """Measured quality relative to the full model, in (0, 1]."""
    ladder: str
    level: int
    """Position in the ladder, 0 = smallest."""
    token_budget: float = 1.0
    """Fraction of tokens kept, in (0, 1]."""

    @property
    def name(self) -> str:
        """``LADDER:LEVEL`` or ``LADDER:LEVEL@BUDGET``."""
        budget = "" if self.token_budget == 1.0 else f"@{self.token_budget:g}"
        return f"{self.ladder}:{self.level}{budget}"


@dataclass(frozen=True)
class SLO:
    """What the client asked for. Durations in seconds relative to arrival; ``inf`` = not asked."""

    slo_class: str = "default"
    deadline_s: float = math.inf
    """End-to-end latency."""
    ttft_s: float = math.inf
    """Time to first token."""
    tpot_s: float = math.inf
    """Time per output token after the first: token k (0-based) is due at arrival + ttft_s + k * tpot_s, so time won
    on one token may be spent on the next. Without ``ttft_s`` the count starts at the first token."""
    min_quality: float = 0.0
    """Floor, relative to the full model."""
    priority: int = 0
    """0 = default, 1 = highest, larger = less urgent (Open Inference Protocol)."""

    @property
    def asks_latency(self) -> bool:
        return min(self.deadline_s, self.ttft_s, self.tpot_s) < math.inf


class Phase(enum.Enum):
    """Where a request stands. WAITING -> RUNNING -> DONE; RUNNING -> WAITING when it is put back (preempted)."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


@dataclass(eq=False)
class Request:
    """One request as schedulers see it. Identity, not value, equality."""

    request_id: str
    arrival_s: float
    """Clock time at which the server received it."""
    slo: SLO
    points: tuple[OperatingPoint, ...]
    """Allowed operating points, ascending in cost; never empty. A pinned request has exactly one."""
    prompt_tokens: int
    max_tokens: int
    """Upper bound of tokens to generate."""
    hard_deadline_s: float = math.inf
    """Absolute clock time after which nobody waits for the answer (gRPC deadline less a margin)."""
    queue_deadline_s: float = math.inf
    """Absolute clock time by which it must have started (the protocol's ``timeout``)."""

    # Progress: written by the engine only.
    phase: Phase = Phase.WAITING
    point: OperatingPoint | None = None
    """Set when first scheduled; kept when put back, so that recomputation gives identical output."""
    known_tokens: int = 0
    """Prompt plus generated tokens: how far the sequence is known. Initialised to ``prompt_tokens``."""
    computed_tokens: int = 0
    """Tokens whose keys and values are in the cache (0 after being put back, > 0 after prefix reuse)."""
    generated_tokens: int = 0
    started_s: float = math.nan
    """When it was first scheduled; nan = never."""
    first_token_s: float = math.nan
    """When its first token came; nan = not yet."""
    preemptions: int = 0
    """Times it was put back."""

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("points: empty; a request needs at least one allowed operating point")
        self.known_tokens = max(self.known_tokens, self.prompt_tokens)

    @property
    def pending_tokens(self) -> int:
        """Tokens that must go through the model before the next one can be sampled; 1 in steady decode."""
        return self.known_tokens - self.computed_tokens

    @property
    def deadline_s(self) -> float:
        """Absolute time by which the whole answer is due: the asked latency, bounded by the hard deadline."""
        return min(self.arrival_s + self.slo.deadline_s, self.hard_deadline_s)

    @property
    def has_started(self) -> bool:
        """True once it was scheduled, even if it was put back since."""
        return not math.isnan(self.started_s)

    def token_due_s(self, index: int) -> float:
        """Absolute time by which generated token ``index`` (from 0) is due, ``inf`` if no such thing was asked.

        For ``index > 0`` without ``ttft_s`` the first token must have come.
        """
        if index == 0:
            return self.arrival_s + self.slo.ttft_s
        if self.slo.tpot_s == math.inf:
            return math.inf
        first_s = self.first_token_s if self.slo.ttft_s == math.inf else self.arrival_s + self.slo.ttft_s
        return first_s + index * self.slo.tpot_s

    @property
    def next_due_s(self) -> float:
        """Absolute time by which the next token is due (cumulative slack), never later than the whole answer."""
        return min(self.token_due_s(self.generated_tokens), self.deadline_s)
