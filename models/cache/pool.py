"""The pool of pages: which are free, how often each is referenced, and who wants to grow where."""

from __future__ import annotations

import numpy as np

from stepwell.models.cache.runs import Mask, PageIds


class OutOfPages(RuntimeError):
    """Not enough free pages. The cache is unchanged; free a sequence and reserve again."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"cache pages: {needed} needed, {available} free; free a sequence or make the pool larger")
        self.needed = needed
        self.available = available


class PagePool:
    """A page is free, or referenced (``refs > 0``), or neither: idle, held by the prefix index alone.

    A claim keeps other sequences away from pages where one wants to grow, as long as there are others.
    """

    def __init__(self, num_pages: int) -> None:
        self.refs = np.zeros(num_pages, np.int32)
        self.free: Mask = np.ones(num_pages, np.bool_)
        self.num_free = num_pages
        self.claims = np.zeros(num_pages, np.int32)
        """The sequence (a positive id) that has room to grow here; 0 = none."""

    @property
    def unclaimed(self) -> Mask:
        """Pages, free or idle, that nobody references or claims."""
        mask: Mask = (self.refs == 0) & (self.claims == 0)
        return mask

    def can_follow(self, owner: int, last: PageIds, pages: PageIds) -> Mask:
        """Whether ``owner`` may take all ``pages`` [rows, blocks] of each row; no where ``last`` is -1."""
        inside = np.minimum(pages, len(self.refs) - 1)
        claims = self.claims[inside]
        usable = (self.refs[inside] == 0) & ((claims == 0) | (claims == owner)) & (inside == pages)
        follows: Mask = usable.all(axis=1) & (last >= 0)
        return follows

    def take(self, pages: PageIds) -> PageIds:
        """Reference distinct free pages once; returns them."""
        self.refs[pages] = 1
        self.free[pages] = False
        self.num_free -= pages.size
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
        """Give up all claims of ``owner``."""
        self.claims[self.claims == owner] = 0
