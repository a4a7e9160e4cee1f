"""One generation inside the engine: its tokens and its text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepwell.models.exits import NO_EXITS, ExitStates
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.engine.entry import Entry
from stepwell.serving.engine.events import FinishReason, TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.step import SequenceStep

if TYPE_CHECKING:
    from stepwell.models.ladder import SubNetwork
    from stepwell.models.sampling import SampledToken
    from stepwell.models.tokenizer import TextStream


@dataclass(eq=False)
class Generation(Entry):
    """State of one generation. Invariant: ``len(token_ids)`` is the request's ``known_tokens``."""

    job: GenerationJob
    text: TextStream | None
    """None without a tokenizer."""
    eos_token_ids: Collection[int] = ()
    """Tokens that end the output."""
    exits: ExitStates[OperatingPoint] = field(default_factory=ExitStates, init=False)
    """Of computed tokens that left at a point shallower than others it may use; empty unless it may switch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.token_ids = list(self.job.prompt_ids)

    def drop_exits(self) -> None:
        """Forget all exit states."""
        self.exits.clear()
        self.request.exit_tokens = {}

    def computed(self) -> None:
        """See :class:`Entry`."""
        if self.max_depth and self.exits.commit():
            self.request.exit_tokens = self.exits.num_tokens()

    def next_step(self, num_tokens: int, subnet: SubNetwork) -> SequenceStep:
        """See :class:`Entry`. If these are all pending ones, one more is sampled."""
        request, pages = self.request, self.pages
        point = request.point
        assert pages is not None
        assert point is not None
        start, known = request.computed_tokens, request.known_tokens
        end = min(start + num_tokens, known)
        exits = NO_EXITS
        if self.max_depth:
            exits = self.exits.begin(start, end - start, subnet, point, self.max_depth)
        return SequenceStep(
            request_id=request.request_id,
            token_ids=self.token_ids[start:end],
            start=start,
            point=point,
            subnet=subnet,
            pages=pages,
            sampling=self.job.sampling if end == known else None,
            sample_index=request.generated_tokens,
            exits=exits,
        )

    def receive(self, output: SampledToken, now: float) -> tuple[TokenEvent, FinishReason | None]:
        """Take one generated token; see :class:`Entry`. An end-of-sequence token is part of the ids but not of the
        text."""
        token = output
        self._clock_token(now)
        request, text, stream = self.request, "", self.text
        token_id, logprob = token.token_id, token.logprob
        self.token_ids.append(token_id)
        request.known_tokens += 1
        request.generated_tokens += 1
        reason: FinishReason | None = "length" if request.generated_tokens >= request.max_tokens else None
        if not self.job.ignore_eos and token_id in self.eos_token_ids:
            reason = "stop"
        elif stream is not None:
            text = stream.push(token_id)
            reason = "stop" if stream.stopped else reason
        if reason is not None and stream is not None and not stream.stopped:
            text += stream.finish()
        logprobs = None if logprob is None else (logprob,)
        return TokenEvent(self.request_id, (token_id,), text, logprobs), reason

    def _clock_token(self, now: float) -> None:
        request = self.request
        index, point = request.generated_tokens, request.point
        assert point is not None
        self.tokens_at[point] = self.tokens_at.get(point, 0) + 1
        if index == 0:
            request.first_token_s = now
        lateness_s = now - request.token_due_s(index)
        if lateness_s > self.worst_lateness_s:
            self.worst_lateness_s = lateness_s
        self.last_token_s = now
