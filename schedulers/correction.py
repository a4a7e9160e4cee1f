"""The running ratio of actual to predicted durations of steps, with its spread.

Kept for each kind of step: a window of recent ratios, from which median and 90th percentile are read. Steps deviate
from these together: who shares the machine slows down a few in a row, of both kinds. So the next step is expected to
be off as the last few were, as far as that has been so (:class:`_Moment`); of what lies further ahead it says nothing.

A machine that suddenly slows down (a neighbour, a lower clock) makes nearly all ratios of a short run fall outside what
the window knows; then the older ratios are scaled to the new centre and all but the newest of them dropped. So the
centre moves at once, and the spread, which takes many samples to learn, is kept.

The machine's pace, which says how long all the work ahead takes, is that of the last few steps of any kind: for 0.1 to
1.5 s ahead it foretells the pace better than a longer window does.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from stepwell.schedulers.work import Array

KINDS = ("decode", "mixed")
"""Steps that are predicted, and corrected, apart: those in which everybody generates a token, and all others."""
WINDOW = 128
"""Ratios remembered."""
RECENT = 8
"""Ratios that decide whether the machine has changed ..."""
OUTSIDE = 7
"""... which it has if so many of them lie beyond the same decile of those before: once in a million steps by chance."""
KEPT = 24
"""Ratios kept from before a change."""
FADE = 0.97
"""By how much less a step counts than the one after it when the spreads of kinds are weighed ..."""
PACE_FADE = 0.87
"""... and in the machine's pace ..."""
PACE_DOUBT = (1.0 - PACE_FADE) / (1.0 + PACE_FADE)
"""... whose variance is this share of a single step's, as that is how independent steps average out in it."""
PAUSE = 2.0
"""Of the 90th percentile: what took longer was a pause, which counts as so long in the mean."""
NEWEST = 0.3
"""Weight of the newest step in how far off the last few were ..."""
MOST_OFF = 0.4
"""... and how far off, as a logarithm, it counts at most: a pause says nothing of the next step."""
CARRIED_FADE = 0.98
"""By how much less a step counts than the one after it when it is learned how much of that to carry over ..."""
CARRIED_DOUBT = 0.05
"""... and the sum of squares that speaks against carrying anything over, before any are known."""
LEAST_OWN = 0.25
"""Of a step, its own part at least."""
PRIOR_SPREAD = 0.15
"""Standard deviation of log ratios assumed before any are known."""
_NORMAL_QUANTILES = (-1.53, -1.04, -0.73, -0.49, -0.27, -0.09, 0.09, 0.27, 0.49, 0.73, 1.04, 1.53)
"""Of a standard normal variable, at 1/16 and then 1/12 apart."""


class Spread(NamedTuple):
    """Actual over raw seconds of single steps."""

    mean: float
    upper: float
    """90th percentile."""

    def over(self, factor: float) -> Spread:
        """That of a machine so many times faster."""
        return Spread(self.mean / factor, self.upper / factor)

    def seconds(self, raw_s: float, step_s: float) -> float:
        """What ``raw_s`` take nine times in ten if they are a row of steps of ``step_s`` (raw) each.

        Steps deviate from their mean independently of each other, so the sum of n deviates by sqrt(n) times as much as
        one of them: for its length, 1 / sqrt(n). And the mean itself is not known better than :data:`PACE_DOUBT` says.
        """
        known, unknown = 1.0 - PACE_DOUBT, PACE_DOUBT
        return raw_s * (self.mean + (self.upper - self.mean) * math.sqrt(unknown + known / (1.0 + raw_s / step_s)))

    def seconds_each(self, raw_s: Array, step_s: float) -> Array:
        """``seconds`` of several rows of steps."""
        known, unknown = 1.0 - PACE_DOUBT, PACE_DOUBT
        return raw_s * (self.mean + (self.upper - self.mean) * np.sqrt(unknown + known / (1.0 + raw_s / step_s)))


class OnlineCorrection:
    """Multipliers of measured seconds, learned while serving; kept apart by kind of step.

    ``observe`` is for one thread; everything else may be read from any.
    """

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}
        self._unknown = _Track()
        self._raw_s: dict[str, float] = {}
        """Of the recent steps of each kind."""
        self._paced_s = self._spent_s = 0.0
        """Of the last few steps: raw and actual seconds."""
        self.overall = Spread(self._unknown.mean, self._unknown.upper)
        """Of all kinds: the pace of the last few steps, and a spread to which each kind counts as far as time was spent
        on it lately."""
        self._moment = _Moment()

    def median(self, kind: str) -> float:
        """Median of actual over raw seconds of recent steps; 1 before any."""
        return self._tracks.get(kind, self._unknown).median

    def mean(self, kind: str) -> float:
        """Mean of the same, pauses cut short."""
        return self._tracks.get(kind, self._unknown).mean

    def upper(self, kind: str) -> float:
        """90th percentile of the same; before any, what a usual spread makes of 1."""
        return self._tracks.get(kind, self._unknown).upper

    def next_median(self, kind: str) -> float:
        """Of the next step, if it is of this kind."""
        return self.median(kind) * self._moment.factor

    def next_upper(self, kind: str) -> float:
        """The 90th percentile of the same."""
        return self.upper(kind) * self._moment.factor

    def error(self, kind: str) -> float:
        """Median of |actual / predicted - 1| of recent steps, each predicted with ``next_median`` as it was before the
        step; NaN before any."""
        return self._tracks.get(kind, self._unknown).error

    def coverage(self, kind: str) -> float:
        """Share of recent steps that took no longer than ``next_upper`` as it was before them; NaN before any."""
        return self._tracks.get(kind, self._unknown).coverage

    def observe(
        self, kind: str, raw_s: float, actual_s: float, lost_s: float = 0.0, foreseen_lost_s: float = 0.0
    ) -> None:
        """A step predicted (uncorrected) to take ``raw_s`` took ``actual_s``; if either is 0, nothing is learned.

        ``lost_s``: how much of that was taken by what is reckoned with apart, from which nothing is learned;
        ``foreseen_lost_s``: how much was expected to be, for judging the prediction.
        """
        if raw_s > 0.0 and 0.0 < actual_s < math.inf:
            if kind not in self._tracks:
                self._tracks[kind] = _Track()
            track, ratio = self._tracks[kind], max(actual_s - lost_s, LEAST_OWN * actual_s) / raw_s
            off = ratio / track.median
            if track.add(ratio, (actual_s - foreseen_lost_s) / (raw_s * self._moment.factor)):
                self._moment.forget()
            else:
                self._moment.add(off)
            self._raw_s = {known: FADE * sum_s for known, sum_s in self._raw_s.items()}
            self._raw_s[kind] = self._raw_s.get(kind, 0.0) + raw_s
            self._paced_s = PACE_FADE * self._paced_s + raw_s
            self._spent_s = PACE_FADE * self._spent_s + min(ratio, PAUSE * track.upper) * raw_s
            self.overall = self._over_all_kinds()

    def _over_all_kinds(self) -> Spread:
        known = [(self._tracks[kind], raw_s) for kind, raw_s in self._raw_s.items()]
        mean_s, upper_s = sum([t.mean * s for t, s in known], 0.0), sum([t.upper * s for t, s in known], 0.0)
        pace = self._spent_s / self._paced_s
        return Spread(pace, pace * max(upper_s / mean_s, 1.0))


class _Moment:
    """By how much steps are off lately, and how much of that the next one will be: as much as others have been."""

    def __init__(self) -> None:
        self.factor = 1.0
        """Of the next step."""
        self._off = 0.0
        """Of the last few, as a logarithm."""
        self._together, self._squares = 0.0, CARRIED_DOUBT
        """Of that and what the step after was off: sums of products and of squares, whose ratio is the slope."""

    def add(self, ratio: float) -> None:
        """Of actual to expected seconds of a step; of the latter without this factor."""
        off = min(max(math.log(ratio), -MOST_OFF), MOST_OFF)
        self._together = CARRIED_FADE * self._together + self._off * off
        self._squares = CARRIED_FADE * (self._squares - CARRIED_DOUBT) + CARRIED_DOUBT + self._off * self._off
        self._off += NEWEST * (off - self._off)
        self.factor = math.exp(self._off * min(max(self._together / self._squares, 0.0), 1.0))

    def forget(self) -> None:
        """What is expected has changed."""
        self._off, self.factor = 0.0, 1.0


class _Track:
    """The ratios of one kind. What is read from other threads is a plain number, replaced as a whole."""

    def __init__(self) -> None:
        self._ratios = deque(math.exp(PRIOR_SPREAD * z) for z in _NORMAL_QUANTILES)
        """Oldest first; the assumed ones count as the oldest."""
        self._ranked = sorted(self._ratios)
        self._num_seen = 0
        self._scores: deque[tuple[bool, float]] = deque(maxlen=WINDOW)
        """(covered, error) of each step, by what was known before it."""
        self._num_covered = 0
        self._errors: list[float] = []
        """Ascending."""
        self.median, self.mean, self.upper = 1.0, 1.0, quantile(self._ranked, 0.9)
        self.error = self.coverage = math.nan

    def add(self, ratio: float, scored: float) -> bool:
        """Whether the centre has moved at once. ``scored``: the ratio by which the prediction is judged."""
        self._score(scored)
        self._num_seen += 1
        self._ratios.append(ratio)
        insort(self._ranked, ratio)
        if len(self._ratios) > WINDOW:
            _remove(self._ranked, self._ratios.popleft())
        if has_moved := self._num_seen <= RECENT or self._has_changed():
            self._recentre()
        self.median, self.upper = quantile(self._ranked, 0.5), quantile(self._ranked, 0.9)
        most = PAUSE * self.upper
        beyond = [ratio - most for ratio in self._above(most)]
        self.mean = (sum(self._ranked, 0.0) - sum(beyond, 0.0)) / len(self._ranked)
        return has_moved

    def _above(self, ratio: float) -> list[float]:
        return self._ranked[bisect_left(self._ranked, ratio) :]

    def _score(self, ratio: float) -> None:
        if len(self._scores) == WINDOW:
            was_covered, oldest = self._scores[0]
            self._num_covered -= was_covered
            _remove(self._errors, oldest)
        covered, error = ratio <= self.upper, abs(ratio / self.median - 1.0)
        self._scores.append((covered, error))
        self._num_covered += covered
        insort(self._errors, error)
        self.coverage = self._num_covered / len(self._scores)
        self.error = self._errors[len(self._errors) // 2]

    def _split(self) -> tuple[list[float], list[float]]:
        """The ratios before the recent ones, and those, each in order of age."""
        ratios = list(self._ratios)
        at = len(ratios) - min(RECENT, self._num_seen)
        return ratios[:at], ratios[at:]

    def _has_changed(self) -> bool:
        median, newest = self.median, islice(reversed(self._ratios), RECENT)
        above = sum([ratio > median for ratio in newest])
        if RECENT - OUTSIDE < above < OUTSIDE:
            return False  # so most steps need no sorting
        older, recent = self._split()
        older.sort()
        low, high = quantile(older, 0.1), quantile(older, 0.9)
        return sum(r > high for r in recent) >= OUTSIDE or sum(r < low for r in recent) >= OUTSIDE

    def _recentre(self) -> None:
        older, recent = self._split()
        older = older[-KEPT:]
        factor = quantile(sorted(recent), 0.5) / quantile(sorted(older), 0.5)
        self._ratios = deque([*(ratio * factor for ratio in older), *recent])
        self._ranked = sorted(self._ratios)


def quantile(ranked: Sequence[float], share: float) -> float:
    """The value that the next one of the same kind stays below with probability ``share``; ``ranked`` is ascending.

    Interpolated at rank ``share * (n + 1)``, which makes that exact for independent values (Weibull); never beyond
    the largest or smallest.
    """
    rank = min(max(share * (len(ranked) + 1) - 1.0, 0.0), len(ranked) - 1.0)
    low = int(rank)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (rank - low) * (ranked[high] - ranked[low])


def _remove(ranked: list[float], value: float) -> None:
    del ranked[bisect_left(ranked, value)]
