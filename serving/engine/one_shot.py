"""A request inside the engine that is answered as a whole: texts to encode, images to classify or segment.

For the policy its rows are a prompt after which one thing comes. Its items (an image, a text) are the units in which
that prompt can be cut. Its sub-networks hold no keys and values, so its pages are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepwell.serving.engine.entry import Entry
from stepwell.serving.engine.events import FinishReason, ResultEvent
from stepwell.serving.engine.job import OneShotJob
from stepwell.serving.engine.step import ItemResult, ItemStep

if TYPE_CHECKING:
    from stepwell.models.ladder import SubNetwork


@dataclass(eq=False)
class OneShot(Entry):
    """State of one such request."""

    job: OneShotJob
    results: list[ItemResult] = field(default_factory=list, init=False)
    """Of the items computed so far."""

    def put_back(self, now: float) -> None:
        """As for all; what was computed is computed again."""
        super().put_back(now)
        self.results = []

    @property
    def kept_tokens(self) -> int | None:
        """See :class:`Entry`; over all items."""
        return sum(result.tokens_kept for result in self.results) if self.results else None

    def next_step(self, num_tokens: int, subnet: SubNetwork) -> ItemStep:
        """See :class:`Entry`."""
        request = self.request
        assert request.point is not None
        unit, start = request.unit_tokens, request.computed_tokens
        end = min(start + num_tokens, request.prompt_tokens)
        items = self.job.items
        if unit < request.prompt_tokens:  # else it is one piece
            items = items[start // unit : end // unit]
        return ItemStep(request.request_id, items, end - start, request.point, subnet, self.job.outputs)

    def receive(self, output: Sequence[ItemResult], now: float) -> tuple[ResultEvent | None, FinishReason | None]:
        """See :class:`Entry`."""
        self.results += output
        request = self.request
        if request.computed_tokens < request.prompt_tokens:
            return None, None
        request.generated_tokens = 1
        request.first_token_s = now
        self.worst_lateness_s = now - request.first_due_s
        return ResultEvent(request.request_id, self.job.outputs, tuple(self.results)), "complete"
