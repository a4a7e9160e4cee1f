"""What calls that come take from the steps that run meanwhile.

Reading a call, checking it and turning it away takes processor time of the endpoint, of the engine's own thread that
receives, and of whoever sends it from the same machine. Where cores are few that is time that the steps lack: a burst
of hundreds of calls slows down the very steps that it has to wait for. So it is learned how much longer steps take for
each call that came in them, apart from the pace of the machine, and time that calls will take is planned with: until
any instant, as many are expected as came in the same time before now. Bursts have no length of their own: one that has
lasted for a while is about half over.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

from stepwell.schedulers.work import Array

HORIZON_S = 10.0
"""Calls of so much time are remembered. Further ahead their mean rate counts."""
MOST_S = 0.005
"""That a call takes from a step at most: what is more has other reasons."""
FADE = 0.99
"""By how much less a step counts than the one after it in which calls came."""
DOUBT = 16.0
"""Calls, squared, that are taken to have cost nothing, before any are known."""


class Toll:
    """``calls_came`` is for one thread at a time, ``learn`` for the engine's; everything else may be read from any."""

    def __init__(self) -> None:
        self.call_s = 0.0
        """What a call takes."""
        self._times: list[float] = []
        """Of calls, ascending. Grown in place, shortened by a new list: a reader keeps the one it has."""
        self._taken_s, self._num = 0.0, DOUBT

    def calls_came(self, now: float, number: int = 1) -> None:
        """Somebody asks, whatever the answer."""
        times = self._times
        if times and times[0] < now - 2 * HORIZON_S:
            times = self._times = times[bisect_right(times, now - HORIZON_S) :]
        times += [now] * number

    def lost_s(self, now: float, until_s: float) -> float:
        """Time that calls are expected to take from now on until then; 0 for ever."""
        times = self._times
        if not times or not self.call_s:
            return 0.0
        return self.call_s * _expected(times, bisect_right(times, now), now, until_s)

    def lost_each_s(self, now: float, until_s: Array) -> Array | None:
        """``lost_s`` of several instants; None if nothing is lost."""
        times, call_s = self._times, self.call_s
        if not times or not call_s or times[-1] < now - HORIZON_S:
            return None
        num_so_far = bisect_right(times, now)
        instants: list[float] = until_s.tolist()
        return np.array([call_s * _expected(times, num_so_far, now, instant_s) for instant_s in instants])

    def learn(self, begin_s: float, usual_s: float, actual_s: float) -> float:
        """A step that would have taken ``usual_s`` on average if nobody had come took ``actual_s``. Returns what of
        that the calls took, by what was known before.

        A step that takes long for another reason sees more calls come. So what they take is judged by those that came
        in the usual time, which does not depend on that (an instrument for all of them).
        """
        num = self._num_between(begin_s, begin_s + actual_s)
        if not num:
            return 0.0
        lost_s = num * self.call_s
        expected = self._num_between(begin_s, begin_s + min(usual_s, actual_s))
        most_s = num * MOST_S
        self._taken_s = FADE * self._taken_s + expected * min(max(actual_s - usual_s, -most_s), most_s)
        self._num = FADE * (self._num - DOUBT) + DOUBT + expected * num
        self.call_s = max(self._taken_s / self._num, 0.0)
        return lost_s

    def _num_between(self, begin_s: float, end_s: float) -> int:
        times = self._times
        return bisect_right(times, end_s) - bisect_right(times, begin_s)


def _expected(times: list[float], num_so_far: int, now: float, until_s: float) -> float:
    """How many calls will come until then, if ``num_so_far`` of ``times`` are over; 0 for ever."""
    ahead_s = until_s - now
    if not 0.0 < ahead_s < math.inf:
        return 0.0
    known_s = ahead_s if ahead_s < HORIZON_S else HORIZON_S
    return (num_so_far - bisect_right(times, now - known_s, 0, num_so_far)) * (ahead_s / known_s)
