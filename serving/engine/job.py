"""What the data plane hands to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepwell.schedulers.request import Request

if TYPE_CHECKING:
    from stepwell.models.sampling import SamplingParams


@dataclass(frozen=True)
class GenerationJob:
    """One generation: the scheduler's view of it, the prompt, and how to sample. Ids are checked by the data plane."""

    request: Request
    """``request.prompt_tokens == len(prompt_ids)``; its times are on the engine's clock."""
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    """Strings that end the output; none of them is part of it. Need a tokenizer."""
    ignore_eos: bool = False
    """Go on to ``max_tokens`` whatever is sampled."""
