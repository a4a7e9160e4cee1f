"""What a scheduler knows of a request: its service-level objective, its allowed operating points, its progress.

Plain data, no torch. The serving layer creates a :class:`Request`; only the engine writes its progress fields;
scheduling policies read all of it and write nothing.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from functools import cached_property

from stepwell.schedulers.work import before_decoding, pack, row


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

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Kept, as every token is counted by its point; of numbers only, so that it means the same in any process."""
        return hash((self.level, self.cost, self.quality, self.token_budget))

    @cached_property
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


PATIENCE_S = 30.0
"""A request that asks for no first token in time counts as due this long after arrival, times its priority class."""
AGEING_S = 0.02
"""How much later than its due time a request counts as due for each priority class below the default: after waiting
this much longer it passes newer ones of the class above, so nothing starves."""
DEFAULT_PRIORITY = 2
"""Priority class of requests that name none (0)."""


@dataclass(eq=False, slots=True)
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
    unit_tokens: int = 1
    """A slice of its prompt has a multiple of so many tokens: an image or a text that is answered in one step cannot
    be computed in pieces. Divides ``prompt_tokens``; a step must have room for one."""
    reach_tokens: float = 0.0
    """Tokens that each of its tokens attends to, on average, where these are not all that are known: of several texts
    that are answered as a whole each attends to itself. 0 = all."""
    may_switch: bool = False
    """Whether its operating point may change among ``points`` from token to token (the ladder says its keys and values
    are exact or approximate across levels). Otherwise it stays where it started."""

    # Progress: written by the engine only.
    phase: Phase = Phase.WAITING
    point: OperatingPoint | None = None
    """Where it ran last. Set when first scheduled; kept when put back, so that recomputation gives identical output."""
    exit_tokens: dict[OperatingPoint, int] = field(default_factory=dict)
    """Computed tokens that left the network at a point shallower than others it may use, by that point; their exit
    hidden states are kept. Before it runs at a deeper point, they run through the layers between (backfill)."""
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

    # Worked out once, because a policy reads them for every request of a long queue in every step.
    deadline_s: float = field(init=False)
    """Absolute time by which the whole answer is due: the asked latency, bounded by the hard deadline."""
    first_due_s: float = field(init=False)
    """Absolute time by which the first token is due, ``inf`` if no such thing was asked."""
    prompt_due_s: float = field(init=False)
    """Absolute time by which its prompt must be computed: for the first token, or at the latest for the whole."""
    class_shift_s: float = field(init=False)
    """How much later than it is due it counts as due, for its priority class."""
    patience_s: float = field(init=False)
    """Absolute time by which it counts as due as long as nothing is."""
    rank_s: float = field(init=False)
    """Its :attr:`urgency_s` before its first token: where it stands in the queue."""
    start_by_s: float = field(init=False)
    """Absolute time from which on there is no point in starting it: it is dropped unless it has started."""
    whole_work: bytes = field(init=False, repr=False)
    """All of its work, as a packed row of :mod:`stepwell.schedulers.work`."""
    decoding_work: bytes = field(init=False, repr=False)
    """See :func:`~stepwell.schedulers.work.before_decoding`."""

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("points: empty; a request needs at least one allowed operating point")
        self.known_tokens = max(self.known_tokens, self.prompt_tokens)
        slo, priority = self.slo, self.slo.priority or DEFAULT_PRIORITY
        self.deadline_s = min(self.arrival_s + slo.deadline_s, self.hard_deadline_s)
        self.first_due_s = self.arrival_s + slo.ttft_s
        self.prompt_due_s = due_s = min(self.first_due_s, self.deadline_s)
        self.class_shift_s = (priority - DEFAULT_PRIORITY) * AGEING_S
        self.patience_s = self.arrival_s + priority * PATIENCE_S
        self.rank_s = due_s + self.class_shift_s if due_s < math.inf else self.patience_s
        self.start_by_s = min(self.deadline_s, self.queue_deadline_s)
        second_due_s = self.first_due_s + slo.tpot_s
        prompt = self.prompt_tokens
        reach = self.reach_tokens or prompt
        whole = row(prompt, due_s, self.max_tokens - 1, second_due_s, slo.tpot_s, self.deadline_s, reach)
        self.whole_work, self.decoding_work = pack(whole), pack(before_decoding(whole))

    @property
    def pending_tokens(self) -> int:
        """Tokens that must go through the model before the next one can be sampled; 1 in steady decode."""
        return self.known_tokens - self.computed_tokens

    def whole_units(self, num_tokens: int) -> int:
        """The most of so many pending tokens that make up a slice."""
        return num_tokens - num_tokens % self.unit_tokens

    @property
    def has_started(self) -> bool:
        """True once it was scheduled, even if it was put back since."""
        return not math.isnan(self.started_s)

    def token_due_s(self, index: int) -> float:
        """Absolute time by which generated token ``index`` (from 0) is due, ``inf`` if no such thing was asked.

        For ``index > 0`` without ``ttft_s`` the first token must have come.
        """
        if index == 0:
            return self.first_due_s
        tpot_s = self.slo.tpot_s
        if tpot_s == math.inf:
            return math.inf
        first_s = self.first_token_s if self.first_due_s == math.inf else self.first_due_s
        return first_s + index * tpot_s

    @property
    def next_due_s(self) -> float:
        """Absolute time by which the next token is due (cumulative slack), never later than the whole answer."""
        due_s = self.token_due_s(self.generated_tokens)
        return due_s if due_s < self.deadline_s else self.deadline_s

    @property
    def urgency_s(self) -> float:
        """Sort key, most urgent first: when its next token is due, shifted by its priority class."""
        if not self.generated_tokens:
            return self.rank_s
        due_s = self.next_due_s
        return due_s + self.class_shift_s if due_s < math.inf else self.patience_s
