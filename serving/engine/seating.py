"""From a plan to what runs: every slice gets its pages, and when none are left the least urgent are put back."""

from __future__ import annotations

from functools import cached_property

from stepwell.schedulers.plan import Slice, StepPlan
from stepwell.schedulers.request import OperatingPoint, Phase
from stepwell.serving.engine.entry import Entry
from stepwell.serving.engine.pages import PageKeeper
from stepwell.serving.engine.roster import Roster
from stepwell.serving.engine.step import Step


class Seating:
    """Seats one plan. Slices come most urgent first; requests are put back from the other end, down to the asking one.

    Nobody is put back to admit a newcomer: that would compute one request twice to compute another a little earlier.
    Nor to let a request go deeper: if that would not leave every running one a block to grow into, the slice runs at
    the point where the request ran last.
    """

    def __init__(self, roster: Roster, keeper: PageKeeper, plan: StepPlan, now: float) -> None:
        self._roster, self._keeper, self._now = roster, keeper, now
        self._planned = [(slice_, roster.get(slice_.request.request_id)) for slice_ in plan.slices]
        self._holders = roster.holders
        self._put_back: set[Entry] = set()
        self.cached_tokens = 0
        """Tokens that prefix reuse saved the requests admitted here."""
        self.as_planned = True
        """Whether what runs is exactly what was planned."""

    def seat(self) -> list[Step]:
        """What runs now, in the order of the plan. Admissions that find too few pages stay waiting.

        Raises RuntimeError if nobody could be seated: the policy or the cache miscounts, and would do so forever.
        """
        seated = [(slice_, entry) for slice_, entry in self._planned if self._seat_one(slice_, entry)]
        if self._planned and not seated:
            raise RuntimeError(f"no cache pages for any of {len(self._planned)} planned sequences")
        self.as_planned &= len(seated) == len(self._planned) and not self.cached_tokens
        return [self._step(slice_, entry) for slice_, entry in seated]

    def _seat_one(self, slice_: Slice, entry: Entry) -> bool:
        if self._put_back and entry in self._put_back:
            return False
        request = entry.request
        if request.phase is Phase.RUNNING:
            moves = request.point is not slice_.point  # else its pages cover the point already
            switches = moves and request.may_switch and self._widen(entry, slice_.point)
            num_tokens = request.computed_tokens + slice_.num_tokens
            if not (self._keeper.grow(entry, num_tokens) or self._make_room(entry, num_tokens)):
                return False
            if switches:
                request.point = slice_.point
            elif moves:
                self.as_planned = False
            return True
        if not self._roster.start(entry, slice_.point, self._now):
            return False
        self.cached_tokens += request.computed_tokens
        return True

    def _step(self, slice_: Slice, entry: Entry) -> Step:
        point = entry.request.point
        assert point is not None
        return entry.next_step(slice_.num_tokens, self._keeper.subnet(point))

    def _widen(self, entry: Entry, point: OperatingPoint) -> bool:
        """Pages in all layers of ``point``; False if there are too few."""
        if self._keeper.covers(entry, point):
            return True
        next_blocks = sum(holder.pages.num_rows for holder in self._roster.holders if holder.pages is not None)
        return self._keeper.widen(entry, point, to_spare=next_blocks)

    @cached_property
    def _victims(self) -> list[Entry]:
        """Who held pages before this plan: in its order, then those that are not in it. Put back from the end."""
        held = set(self._holders)
        working = {entry: None for _, entry in self._planned if entry in held}
        return [*working, *(entry for entry in self._holders if entry not in working)]

    def _make_room(self, entry: Entry, num_tokens: int) -> bool:
        """Put others back until ``entry`` can grow; False if it is its own turn."""
        while True:
            victim = self._victims.pop()
            self._roster.put_back(victim, self._now)
            self._put_back.add(victim)
            if victim is entry:
                return False
            if self._keeper.grow(entry, num_tokens):
                return True
