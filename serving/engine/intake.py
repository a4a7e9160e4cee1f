"""Checks at the door of the engine: what could never be served is refused at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwell.models.tokenizer import TextStream
from stepwell.serving.engine.events import Sink
from stepwell.serving.engine.generation import Generation
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.pages import PageKeeper
from stepwell.serving.errors import invalid

if TYPE_CHECKING:
    from stepwell.models.tokenizer import Tokenizer


def accept(job: GenerationJob, sink: Sink, keeper: PageKeeper, tokenizer: Tokenizer | None) -> Generation:
    """``job`` as the engine keeps it. Thread-safe. Raises RequestError (INVALID_ARGUMENT).

    Operating points at which the request could never fit the cache are removed from ``job.request.points``.
    """
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
    return Generation(job, sink, best_point, TextStream(tokenizer, job.stop) if tokenizer else None)
