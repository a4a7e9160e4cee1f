"""One operating point for everybody, in order of deadline: what a server without a ladder does."""

from __future__ import annotations

from stepwell.schedulers.deadline_order import DeadlineOrder
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.request import OperatingPoint, Request

SMALLEST, LARGEST = "min", "max"


class Fixed(DeadlineOrder):
    """See the module.

    Args:
        limits: of a step.
        point: ``LADDER:LEVEL`` of the operating point, or ``min`` or ``max`` for the smallest or largest that each
            request allows. A request that does not allow the point runs at the one nearest to it in its ladder, or at
            its largest if it is on another ladder.
    """

    name = "fixed"

    def __init__(self, limits: Limits, point: str = LARGEST) -> None:
        super().__init__(limits)
        ladder, _, level = point.rpartition(":")
        if point not in (SMALLEST, LARGEST) and not (ladder and level.isdecimal()):
            raise ValueError(
                f"policy fixed: got operating point {point!r}; write fixed:LADDER:LEVEL, fixed:min or fixed:max"
            )
        self._ladder = ladder
        self._level = int(level) if ladder else -1 if point == SMALLEST else None

    def point_of(self, request: Request) -> OperatingPoint:
        """Where it started, else the allowed point nearest to the policy's."""
        if request.point is not None:
            return request.point
        level, points = self._level, request.points
        if level is None:
            return points[-1]
        if not self._ladder:
            return points[0]
        same = [p for p in points if p.ladder == self._ladder]
        return min(same, key=lambda p: abs(p.level - level)) if same else points[-1]
