"""Checks at the door of the engine: what could never be served is refused at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from stepwell.models.tokenizer import TextStream
from stepwell.serving.engine.entry import Entry
from stepwell.serving.engine.events import Sink
from stepwell.serving.engine.generation import Generation
from stepwell.serving.engine.job import GenerationJob, Job
from stepwell.serving.engine.one_shot import OneShot
from stepwell.serving.engine.pages import PageKeeper
from stepwell.serving.errors import invalid

if TYPE_CHECKING:
    from stepwell.models.tokenizer import Tokenizer


def accept(
    job: Job, sink: Sink, keeper: PageKeeper, tokenizer: Tokenizer | None, eos_token_ids: Collection[int]
) -> Entry:
    """``job`` as the engine keeps it. Thread-safe. Raises RequestError (INVALID_ARGUMENT)."""
    if isinstance(job, GenerationJob):
        return _accept_generation(job, sink, keeper, tokenizer, eos_token_ids)
    request = job.request
    assert job.items
    assert request.max_tokens == 1
    assert request.prompt_tokens % request.unit_tokens == 0
    return OneShot(request, sink, request.points[-1], job)


def _accept_generation(
    job: GenerationJob, sink: Sink, keeper: PageKeeper, tokenizer: Tokenizer | None, eos_token_ids: Collection[int]
) -> Generation:
    """Operating points at which the request could never fit the cache are removed from ``job.request.points``."""
    request = job.request
    assert request.prompt_tokens == len(job.prompt_ids)
    if not job.prompt_ids:
        raise invalid("prompt", "empty", len(job.prompt_ids), "send at least one token")
    if request.max_tokens < 1:
        raise invalid("max_tokens", "must be >= 1", request.max_tokens, "ask for at least one token")
    if job.stop and tokenizer is None:
        raise invalid("stop", "needs a tokenizer, this model has none", job.stop, "leave it out and stop on token ids")
    best_point = request.points[-1]
    request.points = keeper.points_that_fit(request)
    if not request.points:
        raise invalid(
            "max_tokens",
            f"a prompt of {request.prompt_tokens} tokens and this many more never fit the cache of "
            f"{keeper.total_pages} pages",
            request.max_tokens,
            "ask for fewer, shorten the prompt, allow a smaller operating point or start with a larger cache",
        )
    text = TextStream(tokenizer, job.stop) if tokenizer else None
    return Generation(request, sink, best_point, job, text, eos_token_ids)
