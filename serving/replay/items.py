"""Loads for models that answer as a whole: a request is one item, image or text, and what is asked is one latency."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from stepwell.serving.config import DEFAULT_CLASS, ServerConfig, SLOClass
from stepwell.serving.replay.workload import Workload

DEADLINE_FACTORS = {"tight": 8.0, "normal": 20.0, "relaxed": 80.0}
"""Class -> its deadline as a multiple of what a full-quality item takes on its own: a queue of as many is too long,
unless batches or smaller operating points make it shorter."""


@dataclass(frozen=True)
class ItemTokens:
    """How many tokens an item is to a model."""

    least: int
    most: int
    """The same as ``least`` for images, which all have the model's own size."""

    def of(self, prompt_tokens: int) -> int:
        """Of the item that stands for a prompt of a trace."""
        return min(max(prompt_tokens, self.least), self.most)


def as_items(workload: Workload, size: ItemTokens) -> Workload:
    """Each arrival one item: of the model's own size, or a text as long as the prompt, clipped to what it takes."""
    if size.least == size.most:
        return workload.with_lengths(lambda _: (size.most, 1), f"an item each, of {size.most} tokens")
    clipped = sum(size.of(arrival.prompt_tokens) != arrival.prompt_tokens for arrival in workload.arrivals)
    note = f"a text each, as long as the prompt; {clipped} of {len(workload)} clipped to {size.most} tokens"
    return workload.with_lengths(lambda arrival: (size.of(arrival.prompt_tokens), 1), note)


def typical_tokens(workload: Workload) -> int:
    """Of an item: the median."""
    return statistics.median_high(arrival.prompt_tokens for arrival in workload.arrivals)


def item_classes(item_s: float) -> dict[str, SLOClass]:
    """SLO classes for a model that answers a full-quality item on its own in ``item_s`` seconds."""
    timed = {
        name: SLOClass(deadline_ms=float(f"{1e3 * factor * item_s:.3g}"), priority=number + 1)
        for number, (name, factor) in enumerate(DEADLINE_FACTORS.items())
    }
    return timed | {DEFAULT_CLASS: SLOClass()}


def are_built_in(classes: Mapping[str, SLOClass]) -> bool:
    """Whether a configuration says nothing of classes: those built in are made for generations."""
    return classes == ServerConfig().slo_classes


def deadlines_note(classes: Mapping[str, SLOClass]) -> str:
    """What classes of :func:`item_classes` ask for, for people."""
    asked = ", ".join(f"{name} {c.deadline_ms:g} ms" for name, c in classes.items() if c.deadline_ms is not None)
    factors = ", ".join(f"{factor:g}" for factor in DEADLINE_FACTORS.values())
    return f"deadlines: {asked} ({factors} times an item at full quality)"
