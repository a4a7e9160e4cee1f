"""Refusing at once what cannot be met: a request is accepted only if nobody's deadline is lost by it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from stepwell.schedulers.plan import Drop
from stepwell.schedulers.request import Request


class Admission(ABC):
    """What has been promised. Made anew when a step begins and when it ends; used under a lock, by whoever submits."""

    @abstractmethod
    def admit(self, now: float, request: Request) -> Drop | None:
        """None: accepted, and its demand counts from now on. Otherwise why not, and when to try again."""

    @abstractmethod
    def count(self, request: Request) -> None:
        """``request`` was accepted earlier but is not among those this was made from."""
