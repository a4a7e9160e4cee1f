"""Everyone at the best operating point it allows, in order of due times: what policies that trade quality must beat."""

from __future__ import annotations

from stepwell.schedulers.deadline_order import DeadlineOrder
from stepwell.schedulers.request import OperatingPoint, Request


class MaxQuality(DeadlineOrder):
    """See the module."""

    name = "max_quality"

    def point_of(self, request: Request) -> OperatingPoint:
        """Where it started, else the best point it allows."""
        return request.point or request.points[-1]
