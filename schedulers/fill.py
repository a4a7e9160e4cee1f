"""Who runs in a step, how much of it, and how long that takes: the step is filled in order of due times.

First whoever must advance now, so that no token comes late; then, most urgent first, prompts in chunks that fit and
sequences that are ahead of their due times, which can wait if need be: cumulative slack is credit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from stepwell.schedulers.lineup import Candidate, Lineup
from stepwell.schedulers.plan import Limits, Slice, as_slice, newest_tokens
from stepwell.schedulers.prices import LevelCosts, point_at
from stepwell.schedulers.request import OperatingPoint, Phase, Request
from stepwell.schedulers.room import Room

STEP_S = 0.025
"""How long a step may take, so that somebody who arrives during it can still be served in time; see also
:func:`longest_s`."""
FIXED_FACTOR = 3.0
"""How long it may take at least, as a multiple of what it costs whoever runs: shorter ones would waste the machine."""
RAISE_FACTOR = 2.0
"""How much longer if it raises a sequence: its backfill cannot be cut in pieces."""
GUARD = 0.85
"""Share of the time until the next token is due that a step may take by the 90th percentile of its prediction."""
AHEAD_S = 2 * STEP_S
"""Whose token is due later than this may miss a step."""
MIN_CHUNK = 16
"""Tokens of a prompt that are worth a slice ..."""
CHUNK_SHARE = 0.25
"""... or as many as fill this share of a step, if they are fewer."""
RAISE_SHARE = 0.7
"""Of the time left in a step, what the backfill of a half-read prompt may take."""


def longest_s(prices: LevelCosts, num_decoding: int, slowness: float) -> float:
    """How long a step may take (without correction) in which so many sequences might decode: ``STEP_S``, or where the
    model is slow for the machine, a few times as long as a step takes anyway, and a piece of a prompt."""
    best = prices.rungs[-1]
    fixed_s = prices.fixed(num_decoding)[best]
    return max(STEP_S / slowness, FIXED_FACTOR * fixed_s + MIN_CHUNK * prices.row[best])


class StepFill:
    """One step under construction; durations in seconds of the cost model, without correction.

    Args:
        prices: of the ladder.
        points: its operating points, if every request allows all of them.
        limits: of a step.
        room: for newcomers.
        num_decoding: sequences that might decode.
        longest: tokens of the longest of them.
        longest_s: how long the step may take.
        worst_slowness: actual over predicted seconds, 90th percentile.
    """

    def __init__(
        self,
        prices: LevelCosts,
        points: Sequence[OperatingPoint] | None,
        limits: Limits,
        room: Room,
        num_decoding: int,
        longest: int,
        longest_s: float,
        worst_slowness: float,
    ) -> None:
        self._prices, self._points, self._room = prices, points, room
        self._fixed_s = prices.fixed(num_decoding)
        self._tokens = limits.max_step_tokens
        self._longest, self._worst_slowness = longest, worst_slowness
        self._cap_s, self._raise_cap_s = longest_s, longest_s * RAISE_FACTOR
        self._top, self._seconds = 0, 0.0
        self._slices: list[Slice] = []
        self._due_s: list[float] = []
        """Of each of these, when its next token is due, from now."""
        self._in_order = True
        """Whether that is ascending."""

    @property
    def seconds(self) -> float:
        """How long it takes, roughly."""
        return self._seconds

    @property
    def limit_s(self) -> float:
        """How long it may take."""
        return self._cap_s

    @property
    def slices(self) -> list[Slice]:
        """What runs, most urgent first."""
        if self._in_order:
            return self._slices
        due_s = self._due_s
        return [self._slices[i] for i in sorted(range(len(due_s)), key=due_s.__getitem__)]

    def run(self, decoding: Lineup, prompts: Lineup, next_due_s: float) -> None:
        """Fill the step from ``decoding`` and ``prompts``; ``next_due_s``: from now, when the next token of a sequence
        is due that is not late."""
        if prompts.due_s:
            self._raise_cap_s = self._cap_s
        self._end_by(next_due_s, decoding)
        num_urgent = bisect_left(decoding.due_s, AHEAD_S)
        if self._add_urgent(decoding, num_urgent):
            self._add_others(decoding, num_urgent, prompts)

    def _add_others(self, decoding: Lineup, first: int, prompts: Lineup) -> None:
        """From number ``first`` on, while there is time and tokens are left, most urgent first."""
        due_s = decoding.due_s
        end = bisect_left(due_s, prompts.due_s[0], first) if prompts.due_s else len(due_s)
        if self._add_all(decoding, first, end):
            first = end
        if first == len(due_s) and not prompts.due_s:
            return
        others = [(c, False) for c in decoding.candidates(first)] + [(c, True) for c in prompts.candidates(0)]
        others.sort(key=lambda other: other[0].due_s)
        for candidate, is_prompt in others:
            if self._tokens == 0:
                break
            if is_prompt:
                self._add_prompt(candidate)
            else:
                self._add_decoding(candidate)

    def _add_all(self, decoding: Lineup, first: int, end: int) -> bool:
        """All from number ``first`` on, before number ``end``; or nobody if they do not all fit."""
        if not 0 < end - first <= self._tokens:
            return False
        top = max(decoding.levels[first:end])
        seconds = self._seconds + sum(decoding.token_s[first:end], 0.0) + sum(decoding.backfill_s[first:end], 0.0)
        seconds += self._deeper_s(top)
        if seconds > self._cap_s:
            return False
        requests, levels = decoding.requests[first:end], decoding.levels[first:end]
        points = self._points
        at = list(map(point_at, requests, levels)) if points is None else [points[level] for level in levels]
        self._note(decoding.due_s[first])
        self._due_s += decoding.due_s[first:end]
        self._slices += newest_tokens(requests, at)
        self._tokens -= end - first
        self._top, self._seconds = max(self._top, top), seconds
        return True

    def _end_by(self, due_s: float, decoding: Lineup) -> None:
        """The step ends before the next token is due; but it is never cut so short that most of it were fixed costs."""
        cap_s = due_s * GUARD / self._worst_slowness
        if cap_s < self._raise_cap_s:
            decode_s, key_s = self._prices.decode, self._prices.key
            padded, requests = self._prices.padded, decoding.requests
            keys = [self._longest] * len(requests) if padded else [r.known_tokens for r in requests]
            tokens_s = [decode_s[level] + n * key_s[level] for level, n in zip(decoding.lowest, keys, strict=True)]
            cap_s = max(cap_s, self._fixed_s[0] + sum(tokens_s, 0.0))
            self._cap_s, self._raise_cap_s = min(self._cap_s, cap_s), min(self._raise_cap_s, cap_s)

    def _token_s(self, request: Request, level: int) -> float:
        """A generated token at ``level``."""
        prices = self._prices
        num_keys = max(request.known_tokens, self._longest) if prices.padded else request.known_tokens
        return prices.decode[level] + num_keys * prices.key[level]

    def _add_urgent(self, decoding: Lineup, num_urgent: int) -> bool:
        """All the urgent ones if they fit; else the most urgent ones, and lower if that were less than half. False if
        somebody had to be left out: the step is full."""
        self._seconds = self._fixed_s[0]
        if self._add_all(decoding, 0, num_urgent) or not num_urgent:
            return True
        urgent = decoding.candidates(0, num_urgent)
        fitting, seconds = self._fitting(urgent)
        while len(fitting) * 2 < len(urgent) and (lowered := self._lowered(urgent)) is not None:
            urgent = lowered
            fitting, seconds = self._fitting(urgent)
        for candidate in fitting:
            self._take(candidate, 1)
        self._seconds = seconds
        return len(fitting) == num_urgent

    def _lowered(self, urgent: Sequence[Candidate]) -> list[Candidate] | None:
        """Nobody above the next lower rung; None if that changes nothing."""
        top = max(c.level for c in urgent)
        below = max([rung for rung in self._prices.rungs if rung < top], default=top)
        lowered = [self._moved(c, below) if c.level > below and c.lowest < c.level else c for c in urgent]
        return None if lowered == urgent else lowered

    def _moved(self, candidate: Candidate, level: int) -> Candidate:
        """Down to ``level``, or to the lowest it allows."""
        level = max(level, candidate.lowest)
        return candidate._replace(level=level, token_s=self._token_s(candidate.request, level), backfill_s=0.0)

    def _fitting(self, urgent: Sequence[Candidate]) -> tuple[Sequence[Candidate], float]:
        """The first of ``urgent`` that fit into the step, and its duration."""
        seconds = self._fixed_s[max([c.level for c in urgent], default=0)]
        fitting: list[Candidate] = []
        for candidate in urgent[: self._tokens]:
            if candidate.backfill_s:
                candidate = self._if_affordable(candidate, seconds)
            more_s = candidate.token_s + candidate.backfill_s
            if seconds + more_s > (self._raise_cap_s if candidate.backfill_s else self._cap_s) and fitting:
                break
            fitting.append(candidate)
            seconds += more_s
        return fitting, seconds

    def _if_affordable(self, candidate: Candidate, seconds: float) -> Candidate:
        """``candidate``, left where it ran last if there is no time to raise it."""
        if seconds + candidate.token_s + candidate.backfill_s <= self._raise_cap_s:
            return candidate
        return self._moved(candidate, self._kept_level(candidate))

    def _kept_level(self, candidate: Candidate) -> int:
        point = candidate.request.point
        assert point is not None, "only what has run keeps exit states"
        return min(candidate.level, point.level)

    def _add_decoding(self, candidate: Candidate) -> None:
        if candidate.backfill_s:
            candidate = self._if_affordable(candidate, self._seconds)
        seconds = self._seconds + candidate.token_s + candidate.backfill_s + self._deeper_s(candidate.level)
        if seconds <= (self._raise_cap_s if candidate.backfill_s else self._cap_s) or not self._slices:
            self._take(candidate, 1)
            self._seconds = seconds

    def _add_prompt(self, candidate: Candidate) -> None:
        """As much of a prompt as fits, if that is worth a slice."""
        request, prices = candidate.request, self._prices
        left_s = self._cap_s - self._seconds
        if candidate.backfill_s and candidate.backfill_s > RAISE_SHARE * left_s:
            candidate = self._moved(candidate, self._kept_level(candidate))
        level = candidate.level
        num_tokens = min(request.known_tokens - request.computed_tokens, self._tokens)
        seen = request.reach_tokens or request.computed_tokens + num_tokens
        row_s = prices.row[level] + prices.pair[level] * seen
        once_s = prices.prompt[level] + candidate.backfill_s + self._deeper_s(level)
        fitting = int((left_s - once_s) / row_s)
        if fitting < num_tokens:
            worthwhile = max(1, min(MIN_CHUNK, int(CHUNK_SHARE * self._cap_s / row_s)))
            if fitting < worthwhile and self._slices:
                return
            num_tokens = min(num_tokens, max(fitting, worthwhile))
        if request.unit_tokens > 1:
            num_tokens = request.whole_units(num_tokens) or (0 if self._slices else request.unit_tokens)
            if not num_tokens:
                return
        if request.phase is Phase.RUNNING or self._seated(candidate):
            self._take(candidate, num_tokens)
            self._seconds += once_s + num_tokens * row_s

    def _seated(self, candidate: Candidate) -> bool:
        """Whether a newcomer gets a seat and pages."""
        request = candidate.request
        return self._room.seats > 0 and self._room.admit(request, point_at(request, candidate.level))

    def _deeper_s(self, level: int) -> float:
        """What the step's fixed part grows by if somebody runs at ``level``."""
        return max(0.0, self._fixed_s[level] - self._fixed_s[self._top])

    def _note(self, due_s: float) -> None:
        """Somebody is added whose token is due then."""
        if self._due_s and due_s < self._due_s[-1]:
            self._in_order = False

    def _take(self, candidate: Candidate, num_tokens: int) -> None:
        request, level = candidate.request, candidate.level
        self._note(candidate.due_s)
        self._due_s.append(candidate.due_s)
        self._slices.append(as_slice((request, num_tokens, point_at(request, level))))
        self._tokens -= num_tokens
        if level > self._top:
            self._top = level
