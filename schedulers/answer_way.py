"""How long what an engine has made is on its way to whoever reads it.

An answer in time for the engine may be late for its client: it waits for the endpoint, which reads calls and writes
other answers meanwhile. What the endpoint has measured of recent answers is planned with, so planning runs this much
ahead of the clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from stepwell.schedulers.correction import quantile

UNKNOWN_S = 0.015
"""Before any is known."""
BEYOND_S = 0.004
"""What nobody here can measure: the network's and the client's part."""
MOST_S = 0.05
"""However slow the endpoint is: it is not the engine that can make good for more."""
SHARE = 0.9
"""Of the answers, those that are to be in time."""
WINDOW = 64
"""Answers remembered."""
FEWEST = 8
"""Answers that say something."""


class AnswerWay:
    """What is planned with. ``observe`` is for one thread; ``seconds`` may be read from any."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.seconds = UNKNOWN_S
        """Ninety percent of the answers take no longer from the engine to the client."""

    def observe(self, ways_s: Iterable[float]) -> None:
        """Recent answers took so long from the engine to the transport. What is not a number, or negative, was not
        measured."""
        self._recent.extend([way_s for way_s in ways_s if 0.0 <= way_s < math.inf])
        if len(self._recent) >= FEWEST:
            self.seconds = min(quantile(sorted(self._recent), SHARE) + BEYOND_S, MOST_S)
