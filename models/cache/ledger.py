"""Pool and prefix index together: pages given out and taken back, cached ones evicted when they are needed.

A sequence's pages of one layer are read fastest when their ids are consecutive (one view, no gather). So a sequence
claims room to grow when it first gets pages, if need be where old cached prefixes lie; they go when it grows there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell.models.cache.pool import PagePool
from stepwell.models.cache.prefix import PrefixIndex
from stepwell.models.cache.runs import PageIds, cheapest_window, first_run, longest_run, scattered_pages
from stepwell.models.ladder import SubNetwork


class PageLedger:
    """Every page of the pool is free, referenced by sequences, or idle: held by the prefix index alone."""

    def __init__(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages)
        self.index = PrefixIndex(num_pages)

    @property
    def num_available(self) -> int:
        """Pages that an allocation can get: free or idle."""
        return self.pool.num_free + self.index.num_idle_pages

    def allocate(self, owner: int, last: PageIds, num_blocks: int, room: int) -> PageIds:
        """New pages [rows, num_blocks], referenced once; needs that many available.

        A row continues after its ``last`` page (-1: a new row) where that is possible; other rows go to a run with
        ``room`` >= ``num_blocks`` pages, claimed for ``owner``, or to what there is.
        """
        steps: PageIds = np.arange(1, num_blocks + 1, dtype=np.int32)
        pages = last[:, None] + steps
        follows = self.pool.can_follow(owner, last, pages)
        self._take(pages[follows])
        if not follows.all():
            pages[~follows] = self._place(owner, int(np.count_nonzero(~follows)), num_blocks, room)
        return pages

    def share(self, pages: PageIds) -> PageIds:
        """One more reference to each of the given distinct pages, referenced or idle; returns them."""
        for page in pages[self.pool.refs[pages] == 0].tolist():
            self.index.use(page)
        self.pool.share(pages)
        return pages

    def release(self, pages: PageIds) -> None:
        """Drop pages [rows, blocks], last block first, so that the index evicts prefixes from their end."""
        unreferenced = self.pool.drop(pages.T[::-1].ravel())
        self.pool.put_back([page for page in unreferenced if not self.index.release(page)])

    def register(self, digest: bytes, subnet: SubNetwork, pages: Sequence[int]) -> None:
        """Make a full block of referenced pages findable, unless its readers are served already."""
        if self.index.find(digest, subnet) is None:
            self.pool.put_back(self.index.add(digest, subnet, pages))

    def forget(self, pages: Sequence[int]) -> None:
        """Make the blocks that hold one of ``pages`` unfindable."""
        for page in pages:
            self.pool.put_back(self.index.remove_holding(page))

    def _take(self, pages: PageIds) -> PageIds:
        self.forget(pages[~self.pool.free[pages]].tolist())
        return self.pool.take(pages)

    def _place(self, owner: int, num_rows: int, num_blocks: int, room: int) -> PageIds:
        """Pages for rows that start anew: one slab for all rows, else a run a row, else scattered."""
        slab = self._cheapest(num_rows * room)
        if slab is not None:
            starts = range(slab, slab + num_rows * room, room)
            return np.stack([self._take_run(owner, start, num_blocks, room) for start in starts])
        rows: list[PageIds] = []
        while len(rows) < num_rows:
            start, length = self._cheapest(room), room
            if start is None:
                start, length = longest_run(self.pool.unclaimed)
            if length < num_blocks:
                break
            rows.append(self._take_run(owner, start, num_blocks, min(length, room)))
        scattered = self._take_scattered((num_rows - len(rows)) * num_blocks)
        return np.concatenate([*rows, scattered]).reshape(num_rows, num_blocks)

    def _cheapest(self, length: int) -> int | None:
        """Start of a run that is free, or else held by the prefixes that were used least recently."""
        unclaimed, free = self.pool.unclaimed, self.pool.free
        if (start := first_run(unclaimed & free, length)) is not None:
            return start
        return cheapest_window(unclaimed, self.index.eviction_costs(free), length)

    def _take_run(self, owner: int, start: int, num_blocks: int, room: int) -> PageIds:
        self.pool.claims[start : start + room] = owner
        return self._take(np.arange(start, start + num_blocks, dtype=np.int32))

    def _take_scattered(self, num_pages: int) -> PageIds:
        """Any free pages: unclaimed ones, the oldest cached ones, and at last those that others claim."""
        while self.index.num_idle_pages and np.count_nonzero(self.pool.unclaimed & self.pool.free) < num_pages:
            self.pool.put_back(self.index.evict())
        own = self.pool.take(scattered_pages(self.pool.unclaimed & self.pool.free, num_pages))
        stolen = self.pool.take(scattered_pages(self.pool.free, num_pages - len(own)))
        return np.concatenate([own, stolen])
