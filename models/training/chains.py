"""The chain of nested sub-networks that wastes least, of all that were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TypeVar

Point = TypeVar("Point", bound=tuple[int, ...])


def best_nested_chain(loss: Mapping[Point, float], cost: Callable[[Point], float]) -> list[Point]:
    """The nested chain, from the smallest sub-network to the full one, that loses least quality at any budget.

    A budget between two levels is served by the lower one, so a chain is a falling staircase of loss over cost. The
    one with the smallest area below it wins; a level that is no better than a smaller one is left out.

    Args:
        loss: of every sub-network, a point being the number of its units in each dimension; lower is better.
        cost: what grows with every unit.
    """

    @cache
    def best_from(point: Point) -> tuple[float, tuple[Point, ...]]:
        """Area and levels of the best chain from this level to the full model."""
        if point == max(loss):
            return 0.0, (point,)
        options = []
        for larger in _larger(loss, point):
            area, chain = best_from(larger)
            step = loss[point] * (cost(larger) - cost(point))
            options.append((area + step, (point, *chain)))
        return min(options)

    return list(best_from(min(loss))[1])


def _larger(loss: Mapping[Point, float], point: Point) -> Iterable[Point]:
    """Points that contain this one and are better, or are the full model."""
    for other in loss:
        contains = other != point and all(theirs >= mine for theirs, mine in zip(other, point, strict=True))
        if contains and (loss[other] < loss[point] or other == max(loss)):
            yield other
