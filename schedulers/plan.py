"""The decision of one step: who runs, how many tokens each, at which operating point, and who is dropped."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import NamedTuple, Protocol

from stepwell.schedulers.request import OperatingPoint, Request


class DropReason(enum.Enum):
    """Why work is dropped before it is computed. The value is the metric label and the client's reason."""

    EXPIRED = "expired"
    """Its deadline has passed."""
    QUEUE_TIMEOUT = "queue_timeout"
    """It did not start within the time it allowed for queueing."""
    HOPELESS = "hopeless"
    """It cannot meet its deadline even at its smallest allowed operating point."""


class Slice(NamedTuple):
    """``num_tokens`` next tokens of ``request`` run in this step at ``point``."""

    request: Request
    num_tokens: int
    point: OperatingPoint


as_slice = partial(tuple.__new__, Slice)
"""A slice from its fields in a tuple: what ``Slice._make`` does, in a third of the time."""


def newest_tokens(requests: Iterable[Request], points: Iterable[OperatingPoint]) -> list[Slice]:
    """A slice of each request at its point that computes its newest token."""
    return list(map(tuple.__new__, repeat(Slice), zip(requests, repeat(1), points, strict=False)))


@dataclass(frozen=True)
class Drop:
    """``request`` ends here, uncomputed or half computed; the engine answers it."""

    request: Request
    reason: DropReason
    retry_after_s: float | None = None
    """When trying again may help, in seconds from now; None if unknown or pointless."""
    missing_s: float = 0.0
    """By how much what is due exceeds the time until then, as far as known: later by less than that is as hopeless."""


@dataclass(frozen=True)
class StepPlan:
    """Slices in order of urgency (most urgent first): when pages run out, the engine puts back from the end."""

    slices: Sequence[Slice] = ()
    drops: Sequence[Drop] = ()
    predicted_s: float | None = None
    """Predicted duration of the step, None without a cost model."""
    learn: Callable[[float], None] | None = None
    """What to call with the seconds that a step of exactly these slices took; None = ask the cost model."""

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.slices)


@dataclass(frozen=True)
class Limits:
    """What a step may hold. From the configuration."""

    max_step_tokens: int = 512
    """Tokens of one step, over all its sequences. Long prompts are prefilled in chunks of at most this."""
    max_running: int = 96
    """Sequences that may hold cache pages at the same time."""
    max_waiting: int = 1024
    """Requests that may wait; further ones are refused at once."""


@dataclass(frozen=True)
class Capacity:
    """What is free now; pages are counted over all layers."""

    free_pages: int
    total_pages: int
    page_tokens: int
    layers_of: Mapping[str, int] = field(default_factory=dict)
    """Operating point name -> layers that hold cache pages, so pages a request needs can be counted."""

    def pages_for(self, point: OperatingPoint, num_tokens: int) -> int:
        """Pages that ``num_tokens`` tokens take at ``point``."""
        return -(-num_tokens // self.page_tokens) * self.layers_of.get(point.name, 1)


class CostModel(Protocol):
    """Predicts the duration of a step; :class:`~stepwell.schedulers.cost_model.StepCostModel`, or a test's."""

    def foresee(self, slices: Sequence[Slice]) -> tuple[float, Callable[[float], None]]:
        """Predicted seconds of a step of ``slices``; and what to call with the seconds that it took, later, when the
        requests have moved on."""
