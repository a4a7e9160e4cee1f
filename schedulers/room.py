"""Seats and cache pages, counted down while requests are admitted to a step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from stepwell.schedulers.plan import Capacity, Limits
from stepwell.schedulers.request import OperatingPoint, Request


class Room:
    """What is free for newcomers.

    Beside the pages of its known tokens, an admission leaves one block for every running sequence to grow into:
    otherwise the next step would put back what this one admitted.
    """

    def __init__(self, capacity: Capacity, running: Sequence[Request], limits: Limits) -> None:
        self._capacity, self._running = capacity, running
        self._block = capacity.page_tokens
        self._admitted_pages = 0
        self._alone = not running
        self.seats = max(0, limits.max_running - len(running))
        """How many more may be admitted."""

    def admit(self, request: Request, point: OperatingPoint) -> bool:
        """Count ``request`` in at ``point`` if it fits. Needs a seat; once one request does not fit, no seat is left:
        nobody overtakes it."""
        needed = self._capacity.pages_for(point, request.known_tokens) + self._capacity.pages_for(point, self._block)
        if needed > self._spare_pages - self._admitted_pages and not self._alone:
            self.seats = 0
            return False
        self.seats -= 1
        self._admitted_pages += needed
        self._alone = False
        return True

    @cached_property
    def _spare_pages(self) -> int:
        layers_of = self._capacity.layers_of
        return self._capacity.free_pages - sum([layers_of.get(r.point.name, 1) for r in self._running if r.point])
