"""From a plan to what runs: every slice gets its pages, and when none are left the least urgent are put back."""

from __future__ import annotations

from functools import cached_property

from stepwell.schedulers.plan import Slice, StepPlan
from stepwell.schedulers.request import OperatingPoint, Phase
from stepwell.serving.engine.generation import Generation
from stepwell.serving.engine.pages import PageKeeper
from stepwell.serving.engine.roster import Roster
from stepwell.serving.engine.step import SequenceStep


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
        self._put_back: set[Generation] = set()
        self.cached_tokens = 0
        """Tokens that prefix reuse saved the requests admitted here."""
        self.as_planned = True
        """Whether what runs is exactly what was planned."""

    def seat(self) -> list[SequenceStep]:
        """What runs now, in the order of the plan. Admissions that find too few pages stay waiting.

        Raises RuntimeError if nobody could be seated: the policy or the cache miscounts, and would do so forever.
        """
        seated = [(slice_, generation) for slice_, generation in self._planned if self._seat_one(slice_, generation)]
        if self._planned and not seated:
            raise RuntimeError(f"no cache pages for any of {len(self._planned)} planned sequences")
        self.as_planned &= len(seated) == len(self._planned) and not self.cached_tokens
        return [self._step(slice_, generation) for slice_, generation in seated]

    def _seat_one(self, slice_: Slice, generation: Generation) -> bool:
        if self._put_back and generation in self._put_back:
            return False
        request = generation.request
        if request.phase is Phase.RUNNING:
            switches = request.may_switch and self._widen(generation, slice_.point)
            if not self._grow(generation, request.computed_tokens + slice_.num_tokens):
                return False
            if switches:
                request.point = slice_.point
            elif request.point is not slice_.point:
                self.as_planned = False
            return True
        if not self._roster.start(generation, slice_.point, self._now):
            return False
        self.cached_tokens += request.computed_tokens
        return True

    def _step(self, slice_: Slice, generation: Generation) -> SequenceStep:
        point = generation.request.point
        assert point is not None
        return generation.next_step(slice_.num_tokens, self._keeper.subnet(point))

    def _widen(self, generation: Generation, point: OperatingPoint) -> bool:
        """Pages in all layers of ``point``; False if there are too few."""
        if self._keeper.covers(generation, point):
            return True
        next_blocks = sum(holder.pages.num_rows for holder in self._roster.holders if holder.pages is not None)
        return self._keeper.widen(generation, point, to_spare=next_blocks)

    @cached_property
    def _victims(self) -> list[Generation]:
        """Who held pages before this plan: in its order, then those that are not in it. Put back from the end."""
        held = set(self._holders)
        working = {generation: None for _, generation in self._planned if generation in held}
        return [*working, *(generation for generation in self._holders if generation not in working)]

    def _grow(self, generation: Generation, num_tokens: int) -> bool:
        while not self._keeper.grow(generation, num_tokens):
            victim = self._victims.pop()
            self._roster.put_back(victim, self._now)
            self._put_back.add(victim)
            if victim is generation:
                return False
        return True
