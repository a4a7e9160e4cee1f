"""Seats as a resource with deadlines: who runs must leave in time for who waits.

With all seats taken, a waiting request can only meet its due time if somebody leaves before. So those with the least
left to do are given a time to leave by: the first of them when the first of the queue must start, and so on. From then
on they are planned like anybody with a deadline.
"""

from __future__ import annotations

import math

import numpy as np

from stepwell.schedulers.work import Array

SHARE = 0.7
"""Of the time until a waiting request is due, what may pass until it gets its seat."""
SOON_S = 0.01
"""Nobody is asked to leave sooner than this."""


def leaving(now: float, tokens_left: Array, successor_due_s: Array) -> Array:
    """In how many seconds each must leave; inf = never.

    Args:
        now: time.
        tokens_left: of each that runs.
        successor_due_s: when those are due that need their seats, most urgent first and not more; inf = never.
    """
    first = tokens_left.argsort(kind="stable")[: len(successor_due_s)]
    left_s = np.empty(len(tokens_left))
    left_s.fill(math.inf)
    left_s[first] = np.maximum(SHARE * (successor_due_s - now), SOON_S)
    return left_s
