"""Pool and prefix index together: references given and taken back, cached pages reclaimed when they are needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell.models.cache.pool import PagePool
from stepwell.models.cache.prefix import PrefixIndex
from stepwell.models.cache.runs import PageIds
from stepwell.models.ladder import SubNetwork


class PageLedger:
    """Every page of the pool is free, referenced by sequences, or idle: held by the prefix index alone."""

    def __init__(self, num_pages: int) -> None:
        self.pool = PagePool(num_pages)
        self.index = PrefixIndex()

    @property
    def num_available(self) -> int:
        """Pages that an allocation can get: free or idle."""
        return self.pool.num_free + self.index.num_idle_pages

    def allocate(self, owner: int, last: PageIds, num_blocks: int, room: int, make_room: bool) -> PageIds:
        """New pages [rows, num_blocks], as ``PagePool.allocate``; needs that many available.

        ``make_room``: evict the oldest cached prefixes also for the room to grow, worth more than they are.
        """
        wanted = len(last) * num_blocks
        if make_room:
            short = len(last) * room - int(np.count_nonzero(self.pool.unclaimed))
            wanted = max(wanted, min(self.pool.num_free + short, self.num_available))
        while self.pool.num_free < wanted:
            self.pool.put_back(self.index.evict())
        return self.pool.allocate(owner, last, num_blocks, room)

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
        """Make blocks that hold one of ``pages`` unfindable."""
        for page in pages:
            self.pool.put_back(self.index.remove_holding(page))
