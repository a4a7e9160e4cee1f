"""Checks of a request against the model it is for: prompt, length, operating point."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stepwell.models.ladder import LadderSet
from stepwell.serving.call import GenerateCall
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine.points import resolve_point
from stepwell.serving.errors import invalid
from stepwell.serving.hosted import HostedModel
from stepwell.serving.slo import ParsedSLO

INLINE_CHARS = 2048
"""Shorter texts are tokenised on the event loop: that is quicker than a change of thread."""


async def prompt_ids(hosted: HostedModel, call: GenerateCall, max_bytes: int) -> tuple[int, ...]:
    """Token ids of the prompt, never empty. Raises RequestError (INVALID_ARGUMENT)."""
    if (call.text is None) == (call.input_ids is None):
        raise invalid("prompt", "exactly one of text and token ids is needed", None, "send one of them")
    if call.input_ids is not None:
        return _checked_ids(hosted, call.input_ids)
    assert call.text is not None
    if len(call.text) < INLINE_CHARS:
        ids = tokenise(hosted, call.text, max_bytes) if call.text else ()
    else:
        ids = await asyncio.get_running_loop().run_in_executor(None, tokenise, hosted, call.text, max_bytes)
    if not ids:
        raise invalid("text", "the prompt is empty", call.text, "send at least one character")
    # Some checkpoints have a tokenizer larger than their embedding.
    return _checked_ids(hosted, ids)


def tokenise(hosted: HostedModel, text: str, max_bytes: int, name: str = "text") -> Sequence[int]:
    """Token ids of a text, called ``name`` in messages; none of the empty one if the tokenizer adds none. Raises
    RequestError (INVALID_ARGUMENT)."""
    _check_text(hosted, text, max_bytes, name)
    assert hosted.tokenizer is not None
    return hosted.tokenizer.encode(text)


def tokenise_pair(
    hosted: HostedModel, text: str, pair: str, max_bytes: int, index: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Token ids and token types of the pair of texts at a place of a request. Raises RequestError
    (INVALID_ARGUMENT)."""
    _check_text(hosted, text, max_bytes, f"text[{index}]")
    _check_text(hosted, pair, max_bytes, f"text_pair[{index}]")
    assert hosted.tokenizer is not None
    return hosted.tokenizer.encode_pair(text, pair)


def _check_text(hosted: HostedModel, text: str, max_bytes: int, name: str) -> None:
    if hosted.tokenizer is None:
        raise invalid(name, "this model has no tokenizer", text, "send token ids instead")
    # A character takes at most four bytes: only texts near the limit need to be measured.
    if len(text) * 4 > max_bytes and (size := len(text.encode())) > max_bytes:
        raise invalid(name, f"at most {max_bytes} bytes", size, "shorten it")


def _checked_ids(hosted: HostedModel, ids: Sequence[int]) -> tuple[int, ...]:
    if not ids:
        raise invalid("input_ids", "the prompt is empty", list(ids), "send at least one token")
    if min(ids) < 0 or max(ids) >= hosted.vocab_size:
        at = next(i for i, token_id in enumerate(ids) if not 0 <= token_id < hosted.vocab_size)
        raise invalid(
            f"input_ids[{at}]", f"must be in 0..{hosted.vocab_size - 1}", ids[at], "use the model's vocabulary"
        )
    return tuple(ids)


def choose_max_tokens(hosted: HostedModel, config: ModelConfig, prompt_tokens: int, asked: int | None) -> int:
    """Tokens to generate at most: what was asked, or the default, within what the context leaves."""
    room = hosted.context_length - prompt_tokens
    if room < 1:
        problem = f"longer than the model's context of {hosted.context_length} tokens less one to generate"
        raise invalid("prompt", problem, f"{prompt_tokens} tokens", "shorten the prompt")
    if asked is None:
        return min(config.default_max_tokens, room)
    if asked < 1:
        raise invalid("max_tokens", "must be >= 1", asked, "ask for at least one token")
    if asked > room:
        problem = f"prompt ({prompt_tokens} tokens) and max_tokens exceed the context of {hosted.context_length} tokens"
        raise invalid("max_tokens", problem, asked, f"ask for at most {room} or shorten the prompt")
    return asked


def pinned_point(ladders: LadderSet, parsed: ParsedSLO, lossless: bool) -> str | None:
    """The operating point a request is pinned to, None if it is free. ``lossless`` pins it to the full model."""
    if parsed.token_budget not in (None, 1.0):
        raise invalid("token_budget", "this model reduces no tokens", parsed.token_budget, "leave it out or send 1")
    if not lossless:
        return parsed.operating_point
    pinned = parsed.operating_point or "max"
    if ladders.subnet(resolve_point(ladders, pinned)) != ladders.architecture.full:
        raise invalid(
            "lossless", "needs the full model, which is not at that operating point", pinned, "drop one of the two"
        )
    return pinned
