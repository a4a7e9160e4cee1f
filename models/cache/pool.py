"""The pool of pages: reference counts, and allocation that prefers consecutive ids.

A sequence's pages of one layer are read fastest when their ids are consecutive (one view, no gather). So a sequence
claims room to grow when it first allocates. Claims are advice: they keep others away while there is other room, and
never make an allocation fail.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepwell.models.cache.runs import PageIds, Runs


class OutOfPages(RuntimeError):
    """Not enough free pages. The cache is unchanged; free a sequence and reserve again."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"cache pages: {needed} needed, {available} free; free a sequence or make the pool larger")
        self.needed = needed
        self.available = available


class PagePool:
    """Which pages are free, how often each is referenced, who claims it. Knows neither tokens nor layers.

    A page is free, referenced (``refs > 0``), or neither: held by the prefix index alone.
    """

    def __init__(self, num_pages: int) -> None:
        self.refs = np.zeros(num_pages, np.int32)
        self.free = np.ones(num_pages, np.bool_)
        self.num_free = num_pages
        self._claims = np.zeros(num_pages, np.int32)  # owner (a positive id) with room to grow here; 0 = nobody

    def allocate(self, owner: int, last: PageIds, num_blocks: int, room: int) -> PageIds:
        """Take ``num_blocks`` pages for each row of ``last``: [rows, num_blocks], referenced once.

        Needs ``num_free >= rows * num_blocks``. Continues after ``last`` [rows] (-1: a new row) where those pages
        are free and not claimed by others; other rows go to runs with ``room`` pages each, claimed for ``owner``.
        """
        steps: PageIds = np.arange(1, num_blocks + 1, dtype=np.int32)
        pages = last[:, None] + steps
        inside = np.minimum(pages, len(self.free) - 1)
        claims = self._claims[inside]
        extends = self.free[inside] & ((claims == 0) | (claims == owner)) & (inside == pages)
        moves = np.flatnonzero(~extends.all(axis=1) | (last < 0))
        self._take(np.delete(pages, moves, axis=0))
        if len(moves):
            pages[moves] = self._place(owner, len(moves), num_blocks, max(room, num_blocks))
        return pages

    def share(self, pages: PageIds) -> None:
        """One more reference to each of the given distinct pages, none of them free."""
        self.refs[pages] += 1

    def drop(self, pages: PageIds) -> list[int]:
        """One reference less to each of the given distinct pages; returns those that lost their last, in order."""
        self.refs[pages] -= 1
        unreferenced: list[int] = pages[self.refs[pages] == 0].tolist()
        return unreferenced

    def put_back(self, pages: list[int]) -> None:
        """Unreferenced pages become free."""
        self.free[pages] = True
        self.num_free += len(pages)

    def unclaim(self, owner: int) -> None:
        """Give up the claims of ``owner``."""
        self._claims[self._claims == owner] = 0

    @property
    def unclaimed(self) -> npt.NDArray[np.bool_]:
        """Mask of the free pages that nobody claims."""
        mask: npt.NDArray[np.bool_] = self.free & (self._claims == 0)
        return mask

    def _take(self, pages: PageIds) -> PageIds:
        self.refs[pages] = 1
        self.free[pages] = False
        self.num_free -= pages.size
        return pages

    def _place(self, owner: int, num_rows: int, num_blocks: int, room: int) -> PageIds:
        """Take pages for rows that start anew: one slab for all rows, else a run a row, else what there is."""
        runs = Runs(self.unclaimed)
        slab = runs.take_fitting(num_rows * room)
        if slab is not None:
            starts = [slab + row * room for row in range(num_rows)]
            return np.stack([self._take_run(owner, start, num_blocks, room) for start in starts])
        rows: list[PageIds] = []
        while len(rows) < num_rows and (length := min(runs.longest(), room)) >= num_blocks:
            start = runs.take_fitting(length)
            assert start is not None  # the longest run fits its own length
            rows.append(self._take_run(owner, start, num_blocks, length))
        missing = (num_rows - len(rows)) * num_blocks
        scattered = self._take(runs.take_scattered(missing))
        stolen = self._take(Runs(self.free).take_scattered(missing - len(scattered)))  # claimed by others
        return np.concatenate([*rows, scattered, stolen]).reshape(num_rows, num_blocks)

    def _take_run(self, owner: int, start: int, num_blocks: int, room: int) -> PageIds:
        self._claims[start : start + room] = owner
        return self._take(np.arange(start, start + num_blocks, dtype=np.int32))
