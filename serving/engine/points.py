"""Operating points of a model, and those that a request allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepwell.models.ladder import LadderError, LadderSet, SubNetwork
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.errors import RequestError, Status, invalid


@dataclass(frozen=True)
class UnitParameters:
    """Parameters of the units a sub-network is made of."""

    attention_group: int
    """Of one key-value head group in one layer: its query, key, value and output projections."""
    ffn_channel: int
    """Of one FFN channel in one layer: gate, up and down."""
    head: int = 0
    """Of what every token runs at every level: the output head."""

    def of(self, subnet: SubNetwork) -> int:
        """Parameters that one token runs through in ``subnet``."""
        units = sum(subnet.kv_groups) * self.attention_group + sum(subnet.ffn_channels) * self.ffn_channel
        return units + self.head


def operating_points(ladders: LadderSet, parameters: UnitParameters) -> dict[str, OperatingPoint]:
    """All levels of all ladders by name; a point's cost is its parameters per token over those of the full
    model, times the share of tokens that is kept."""
    full = parameters.of(ladders.architecture.full)
    points = [
        OperatingPoint(parameters.of(entry.subnet) / full * entry.budget, entry.quality, name, level, entry.budget)
        for name, ladder in ladders.ladders.items()
        for level, entry in enumerate(ladder.levels)
    ]
    return {point.name: point for point in points}


def allowed_points(
    points: Mapping[str, OperatingPoint],
    ladders: LadderSet,
    min_quality: float,
    pinned: str | None,
    token_budget: float | None = None,
) -> tuple[OperatingPoint, ...]:
    """Operating points a request may be served at, ascending in cost.

    ``pinned``: the name of one point, or ``max`` or ``min``; then just that one. Otherwise the points of the default
    ladder whose quality is at least ``min_quality``. ``token_budget``: of these, or if the default ladder reduces no
    tokens, of the first ladder that does, those that keep the largest share of tokens that is not above it. Raises
    RequestError (INVALID_ARGUMENT) if that leaves none.
    """
    if pinned is not None:
        candidates = [points[resolve_point(ladders, pinned)]]
    else:
        candidates = sorted(point for point in points.values() if point.ladder == ladders.default)
    if token_budget is not None:
        candidates = _within(token_budget, candidates, points)
    allowed = tuple(point for point in candidates if point.quality >= min_quality)
    if not allowed:
        best = max(candidates, key=lambda point: point.quality)
        which = "the pinned operating point" if pinned is not None else "the best operating point"
        problem = f"{which} {best.name} has quality {best.quality:g}"
        raise invalid("min_quality", problem, min_quality, f"ask for at most {best.quality:g}")
    return allowed


def _within(
    budget: float, candidates: Sequence[OperatingPoint], points: Mapping[str, OperatingPoint]
) -> list[OperatingPoint]:
    if budget < 1.0 and len(candidates) > 0 and all(point.token_budget == 1.0 for point in candidates):
        ladder = next((point.ladder for point in points.values() if point.token_budget < 1.0), None)
        if ladder is None:
            raise invalid("token_budget", "this model reduces no tokens", budget, "leave it out or send 1")
        candidates = sorted(point for point in points.values() if point.ladder == ladder)
    kept = max((point.token_budget for point in candidates if point.token_budget <= budget), default=None)
    if kept is None:
        least = min(point.token_budget for point in candidates)
        raise invalid("token_budget", f"the smallest is {least:g}", budget, "ask for as much, or for another ladder")
    return [point for point in candidates if point.token_budget == kept]


def may_switch(ladders: LadderSet, points: Sequence[OperatingPoint]) -> bool:
    """Whether a generation may change among ``points`` from token to token: several levels of one ladder, each of which
    can be reached from each other one as exactly as the ladder's ``kv`` promises. Set ``Request.may_switch`` to it."""
    names = {point.ladder for point in points}
    return len(points) > 1 and len(names) == 1 and ladders.ladders[names.pop()].may_switch(p.level for p in points)


def resolve_point(ladders: LadderSet, name: str) -> str:
    """``LADDER:LEVEL`` of an operating point's name or alias. Raises RequestError (INVALID_ARGUMENT)."""
    try:
        ladder, level = ladders.resolve(name)
    except LadderError as error:
        raise RequestError(Status.INVALID_ARGUMENT, str(error)) from error
    return ladder.point_name(level)
