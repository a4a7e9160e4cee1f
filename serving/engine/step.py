"""What the engine hands to the runner in one step, and what it expects back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from stepwell.models.exits import NO_EXITS, StepExits
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.engine.job import Array

if TYPE_CHECKING:
    from stepwell.models.cache import CacheSequence
    from stepwell.models.ladder import SubNetwork
    from stepwell.models.sampling import SamplingParams


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

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def yields(self) -> bool:
        """Whether the runner is to return something for it: a token."""
        return self.sampling is not None

    @property
    def decodes(self) -> bool:
        """Whether it advances a generation by its newest token."""
        return self.sample_index > 0 and len(self.token_ids) == 1


class ItemStep(NamedTuple):
    """The items of one request that run in a step, at ``point``."""

    request_id: str
    items: Sequence[Array]
    """As in :class:`~stepwell.serving.engine.job.OneShotJob`."""
    num_tokens: int
    """Tokens that they are to the unreduced model."""
    point: OperatingPoint
    subnet: SubNetwork
    """The sub-network of ``point`` as far as pages are concerned: without keys and values."""
    outputs: tuple[str, ...]
    """Names of the outputs that are wanted."""
    sample_index: int = 0

    @property
    def yields(self) -> bool:
        """The runner returns a list of :class:`ItemResult`, one an item."""
        return True

    @property
    def decodes(self) -> bool:
        return False


class ItemResult(NamedTuple):
    """What a model says of one item."""

    arrays: tuple[Array, ...]
    """float32, one for each output that was wanted."""
    tokens_kept: int
    """See :class:`~stepwell.models.one_shot.ItemOutput`."""


Step: TypeAlias = SequenceStep | ItemStep


class StepError(RuntimeError):
    """A step failed, and it is known which requests caused it; the others may be computed again."""

    def __init__(self, message: str, request_ids: Collection[str]) -> None:
        super().__init__(message)
        self.request_ids = frozenset(request_ids)


class Runner(Protocol):
    """Runs the model. The only place where the engine meets one: a simulator's runner consults a cost model."""

    def run(self, steps: Sequence[Any]) -> Mapping[str, Any]:
        """Compute all steps, which are of the kind that this runner is for, in one packed batch.

        Returns what each step that ``yields`` is for, by request id. Raises StepError if it knows which requests
        cannot be computed; whatever else it raises, the engine finds that out. Steps may be run again after a failure,
        from the same state.
        """
