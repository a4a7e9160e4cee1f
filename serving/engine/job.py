"""What the data plane hands to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt

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


Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class OneShotJob:
    """One or more texts or images to be answered as a whole. Checked by the data plane."""

    request: Request
    """``prompt_tokens`` = tokens of all items for the unreduced model; ``max_tokens`` = 1; ``unit_tokens`` = tokens of
    each item if they are all the same, else ``prompt_tokens``."""
    items: tuple[Array, ...]
    """Token ids, int32 [n], or [2, n] with token types below; or pixels, float32 [3, H, W], normalised as the model
    wants them."""
    outputs: tuple[str, ...]
    """Names of the outputs that are wanted."""


Job: TypeAlias = GenerationJob | OneShotJob
