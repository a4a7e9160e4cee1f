"""Exit hidden states: what makes going up in mid-generation possible.

A token that left the network after layer n has no keys and values above. If its residual stream at that place is kept,
the layers above can run over it later ("backfill", design §4) and write precisely what they would have written, in the
same packed batch as the deeper tokens that read it: in every layer, keys and values of all rows are appended before
any row attends.

Memory: D numbers a token in the model's dtype, that is ``D * itemsize`` bytes, from the token's exit until its request
runs at the deepest level it may use, is put back, or ends. (Keys and values of one layer are ``2 * kv_heads *
head_dim`` float32 numbers a token: without grouped queries, a kept state takes half a layer of cache, or less.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from stepwell.models.cache import CacheSequence
from stepwell.models.ladder import SubNetwork, layers_from
from stepwell.models.packed import PackedSequence

LevelName = TypeVar("LevelName")
"""How the caller names levels: anything hashable."""


@dataclass(eq=False)
class ExitSegment(Generic[LevelName]):
    """Consecutive tokens of one sequence that left the network at the same level."""

    start: int
    """Position of the first."""
    num_tokens: int
    depth: int
    """They ran the layers before this one."""
    level: LevelName
    """Where they left."""
    hidden: list[Tensor] = field(default_factory=list)
    """Their residual streams there, pieces [.., D] of ``num_tokens`` rows in all. Empty in a simulation."""

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True)
class StepExits(Generic[LevelName]):
    """What one step does with exit states. It may be run again after a failure: nothing it reads is written."""

    backfill: Sequence[ExitSegment[LevelName]] = ()
    """To run through the layers above before, that is together with, the tokens of the step."""
    kept: Sequence[ExitSegment[LevelName]] = ()
    """To be filled by the step: the new exit states of each of ``backfill``, and at last those of its own tokens.
    Empty if nobody will need them."""

    def packed(
        self, token_ids: Sequence[int], start: int, subnet: SubNetwork, pages: CacheSequence, wants_logits: bool
    ) -> list[PackedSequence]:
        """The step's tokens as they go into the batch, after those that are backfilled."""
        keep = bool(self.kept)
        rows = [
            PackedSequence(
                (0,) * segment.num_tokens,
                segment.start,
                layers_from(subnet, segment.depth),
                pages,
                wants_logits=False,
                keep_exit=keep,
                hidden=torch.cat(segment.hidden),
            )
            for segment in self.backfill
        ]
        return [*rows, PackedSequence(token_ids, start, subnet, pages, wants_logits, keep)]


NO_EXITS: StepExits[Any] = StepExits()
"""Of a step that neither keeps nor needs exit states."""


class ExitStates(Generic[LevelName]):
    """The kept exit states of one sequence. For every step: ``begin``, run, ``commit`` if it ran."""

    def __init__(self) -> None:
        self._segments: list[ExitSegment[LevelName]] = []
        self._begun: StepExits[LevelName] = NO_EXITS

    @property
    def segments(self) -> Sequence[ExitSegment[LevelName]]:
        """In order of position."""
        return self._segments

    def begin(
        self, start: int, num_tokens: int, subnet: SubNetwork, level: LevelName, max_depth: int
    ) -> StepExits[LevelName]:
        """A step runs ``num_tokens`` tokens from position ``start`` at ``subnet``.

        ``max_depth``: of the deepest sub-network the sequence may ever run; states there need not be kept.
        """
        depth = subnet.depth
        if depth >= max_depth and not self._segments:
            self._begun = NO_EXITS
            return NO_EXITS
        backfill = [segment for segment in self._segments if segment.depth < depth]
        kept: list[ExitSegment[LevelName]] = []
        if depth < max_depth:
            kept = [ExitSegment(segment.start, segment.num_tokens, depth, level) for segment in backfill]
            kept.append(ExitSegment(start, num_tokens, depth, level))
        self._begun = StepExits(backfill, kept) if backfill or kept else NO_EXITS
        return self._begun

    def commit(self) -> bool:
        """The step that was begun last has run. False if it changed nothing."""
        step, self._begun = self._begun, NO_EXITS
        if step.backfill:
            left = [segment for segment in self._segments if segment not in step.backfill]
            self._segments = []
            for segment in sorted([*left, *step.kept], key=lambda segment: segment.start):
                self._add(segment)
        elif step.kept:
            self._add(step.kept[0])
        return step is not NO_EXITS

    def clear(self) -> None:
        """Forget all."""
        self._segments, self._begun = [], NO_EXITS

    def _add(self, segment: ExitSegment[LevelName]) -> None:
        """At the end; joined to its neighbour of the same level, so that they are backfilled as one run of rows."""
        last = self._segments[-1] if self._segments else None
        if last and last.end == segment.start and last.depth == segment.depth and last.level == segment.level:
            last.num_tokens += segment.num_tokens
            last.hidden += segment.hidden
        else:
            self._segments.append(segment)

    def num_tokens(self) -> dict[LevelName, int]:
        """Tokens whose states are kept, by the level they left at."""
        counts: dict[LevelName, int] = {}
        for segment in self._segments:
            counts[segment.level] = counts.get(segment.level, 0) + segment.num_tokens
        return counts
