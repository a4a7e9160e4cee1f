"""What the engine hands to the runner in one step, and what it expects back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stepwell.schedulers.request import OperatingPoint

if TYPE_CHECKING:
    from stepwell.models.cache import CacheSequence
    from stepwell.models.sampling import SampledToken, SamplingParams


@dataclass(frozen=True)
class SequenceStep:
    """One sequence's share of a step: ``token_ids`` at positions ``start ..`` go through the model at ``point``."""

    request_id: str
    token_ids: Sequence[int]
    start: int
    """Position of the first token; the keys and values of all before it are in ``pages``."""
    point: OperatingPoint
    pages: CacheSequence
    """Room for these tokens is reserved; the runner writes their keys and values."""
    sampling: SamplingParams | None
    """How to sample the token after the last of these; None in all but the last chunk of a prompt."""
    sample_index: int
    """Which generated token that is, from 0: seeds the sampler, so recomputing gives the same token."""


class Runner(Protocol):
    """Runs the model. The only place where the engine meets one: a simulator's runner consults a cost model."""

    def run(self, steps: Sequence[SequenceStep]) -> Mapping[str, SampledToken]:
        """Compute all steps in one packed batch.

        Returns one token for each step with ``sampling``, by request id. Anything raised fails these requests only.
        """
