"""Everyone at the smallest operating point it allows, in order of deadline: as many answers as the machine can give."""

from __future__ import annotations

from stepwell.schedulers.deadline_order import DeadlineOrder
from stepwell.schedulers.request import OperatingPoint, Request


class MaxThroughput(DeadlineOrder):
    """See the module."""

    name = "max_throughput"

    def point_of(self, request: Request) -> OperatingPoint:
        """Where it started, else the smallest point it allows."""
        return request.point or request.points[0]
