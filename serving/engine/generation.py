"""One request inside the engine: its tokens, its pages, its text, its stopwatch."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepwell.models.exits import NO_EXITS, ExitStates
from stepwell.schedulers.request import OperatingPoint, Phase, Request
from stepwell.serving.engine.events import FinishReason, Sink, TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.step import SequenceStep

if TYPE_CHECKING:
    from stepwell.models.cache import CacheSequence
    from stepwell.models.ladder import SubNetwork
    from stepwell.models.sampling import SampledToken
    from stepwell.models.tokenizer import TextStream


@dataclass(eq=False)
class Generation:
    """State of one generation. Only the engine thread touches it once it is submitted. Identity, not value, equality.

    Invariants: ``pages`` is set exactly while the request is RUNNING; ``len(token_ids)`` is its ``known_tokens``.
    """

    job: GenerationJob
    sink: Sink
    best_point: OperatingPoint
    """The best point its client allowed, whether or not the cache could ever hold it."""
    text: TextStream | None
    """None without a tokenizer."""
    request: Request = field(init=False)
    request_id: str = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    """Prompt, then generated tokens."""
    pages: CacheSequence | None = None
    exits: ExitStates[OperatingPoint] = field(default_factory=ExitStates)
    """Of computed tokens that left at a point shallower than others it may use; empty unless it may switch."""
    max_depth: int = 0
    """Of the deepest point it may switch to; 0 if it may not. Set with ``pages``."""
    client_gone: bool = False
    """Its sink raised; it is sent nothing more."""

    waiting_since_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    predicted_s: float | None = None
    last_token_s: float = math.nan
    worst_lateness_s: float = -math.inf
    cached_tokens: int = 0
    tokens_at: dict[OperatingPoint, int] = field(default_factory=dict)
    """Generated tokens by the point that they were served at."""

    def __post_init__(self) -> None:
        self.request, self.request_id = self.job.request, self.job.request.request_id
        self.token_ids = list(self.job.prompt_ids)
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
        """RUNNING -> WAITING. Its tokens are kept and will be recomputed, at the point where it ran last unless the
        policy switches again; keys, values and exit states are not."""
        request = self.request
        self.drop_exits()
        request.phase, request.computed_tokens = Phase.WAITING, 0
        request.preemptions += 1
        self.pages = None
        self.waiting_since_s = now

    def drop_exits(self) -> None:
        """Forget all exit states: they go with the pages."""
        self.exits.clear()
        self.request.exit_tokens = {}

    def computed(self) -> None:
        """The step made last has run."""
        if self.max_depth and self.exits.commit():
            self.request.exit_tokens = self.exits.num_tokens()

    def next_step(self, num_tokens: int, subnet: SubNetwork) -> SequenceStep:
        """Run the next ``num_tokens`` tokens (at most all pending ones; if all, one more is sampled) at the request's
        point, whose sub-network is ``subnet``."""
        request = self.request
        assert self.pages is not None
        assert request.point is not None
        start = request.computed_tokens
        end = min(start + num_tokens, request.known_tokens)
        exits = NO_EXITS
        if self.max_depth:
            exits = self.exits.begin(start, end - start, subnet, request.point, self.max_depth)
        return SequenceStep(
            request_id=request.request_id,
            token_ids=self.token_ids[start:end],
            start=start,
            point=request.point,
            subnet=subnet,
            pages=self.pages,
            sampling=self.job.sampling if end == request.known_tokens else None,
            sample_index=request.generated_tokens,
            exits=exits,
        )

    def append(
        self, token: SampledToken, eos_token_ids: Collection[int], now: float
    ) -> tuple[TokenEvent, FinishReason | None]:
        """Take one generated token; returns what to stream, and why the generation is finished if it is.

        An end-of-sequence token is part of the ids but not of the text.
        """
        self._clock_token(now)
        request, text, stream = self.request, "", self.text
        self.token_ids.append(token.token_id)
        request.known_tokens += 1
        request.generated_tokens += 1
        reason: FinishReason | None = "length" if request.generated_tokens >= request.max_tokens else None
        if not self.job.ignore_eos and token.token_id in eos_token_ids:
            reason = "stop"
        elif stream is not None:
            text = stream.push(token.token_id)
            reason = "stop" if stream.stopped else reason
        if reason is not None and stream is not None and not stream.stopped:
            text += stream.finish()
        logprobs = None if token.logprob is None else (token.logprob,)
        return TokenEvent(request.request_id, (token.token_id,), text, logprobs), reason

    def _clock_token(self, now: float) -> None:
        request = self.request
        assert request.point is not None
        self.tokens_at[request.point] = self.tokens_at.get(request.point, 0) + 1
        if request.generated_tokens == 0:
            request.first_token_s = now
        lateness_s = now - request.token_due_s(request.generated_tokens)
        if lateness_s > self.worst_lateness_s:
            self.worst_lateness_s = lateness_s
        self.last_token_s = now
