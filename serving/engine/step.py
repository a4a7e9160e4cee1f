"""What the engine hands to the runner in one step, and what it expects back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from stepwell.models.exits import NO_EXITS, StepExits
from stepwell.schedulers.request import OperatingPoint

if TYPE_CHECKING:
    from stepwell.models.cache import CacheSequence
    from stepwell.models.ladder import SubNetwork
    from stepwell.models.sampling import SampledToken, SamplingParams


class SequenceStep(NamedTuple):
    """One sequence's share of a step: ``token_ids`` at positions ``start ..`` go through the model at ``point``."""

    request_id: str
    token_ids: Sequence[int]
    start: int
    """Position of the first token; the keys and values of all before it are in ``pages``."""
    point: OperatingPoint
    subnet: SubNetwork
    """The sub-network of ``point``."""
    pages: CacheSequence
    """Room for these tokens is reserved in all layers of ``subnet``, and perhaps in deeper ones that earlier tokens
    ran; the runner writes their keys and values."""
    sampling: SamplingParams | None
    """How to sample the token after the last of these; None in all but the last chunk of a prompt."""
    sample_index: int
    """Which generated token that is, from 0: seeds the sampler, so recomputing gives the same token."""
    exits: StepExits[OperatingPoint] = NO_EXITS
    """Earlier tokens that left at shallower points: the runner runs the layers between over their kept exit hidden
    states first; and where it leaves those that are to be kept. A simulator's runner leaves them alone."""


class StepError(RuntimeError):
    """A step failed, and it is known which requests caused it; the others may be computed again."""

    def __init__(self, message: str, request_ids: Collection[str]) -> None:
        super().__init__(message)
        self.request_ids = frozenset(request_ids)


class Runner(Protocol):
    """Runs the model. The only place where the engine meets one: a simulator's runner consults a cost model."""

    def run(self, steps: Sequence[SequenceStep]) -> Mapping[str, SampledToken]:
        """Compute all steps in one packed batch.

        Returns one token for each step with ``sampling``, by request id. Raises StepError if it knows which requests
        cannot be computed; whatever else it raises, the engine finds that out. Steps may be run again after a failure,
        from the same state.
        """
