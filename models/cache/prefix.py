"""Prefix index: which pages hold the keys and values of which token prefix, and which sub-network computed them.

A full block of tokens is named by a digest chained over all blocks before it, so equal digests mean equal prefixes.
Pages that no sequence references stay here until they are needed, least recently used first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stepwell.models.cache.runs import Mask
from stepwell.models.ladder import SubNetwork

EMPTY_DIGEST = b""
"""The parent of a sequence's first block."""


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Digest of a block of tokens given the digest of all blocks before it."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


@dataclass(eq=False)
class PrefixEntry:
    """The pages of one block of tokens."""

    digest: bytes
    subnet: SubNetwork
    """The sub-network that computed the pages."""
    pages: tuple[int, ...]
    """One page for each of ``subnet.kv_layers``."""
    idle: set[int] = field(default_factory=set)
    """Pages that no sequence references."""


class PrefixIndex:
    """Entries by digest and by page. A page is in at most one entry; of entries that serve the same readers one."""

    def __init__(self, num_pages: int) -> None:
        self.num_idle_pages = 0
        self._last_use = np.zeros(num_pages, np.int64)  # count of uses when an idle page was last used
        self._num_uses = 0
        self._by_digest: dict[bytes, list[PrefixEntry]] = {}
        self._by_page: dict[int, PrefixEntry] = {}
        self._idle: OrderedDict[PrefixEntry, None] = OrderedDict()  # entries with idle pages, least recent first

    def __contains__(self, page: int) -> bool:
        return page in self._by_page

    def entries(self) -> Iterator[PrefixEntry]:
        """All entries."""
        for entries in self._by_digest.values():
            yield from entries

    def idle_entries(self) -> Iterator[PrefixEntry]:
        """Entries with idle pages, the next to be evicted first."""
        return iter(self._idle)

    def find(self, digest: bytes, reader: SubNetwork) -> PrefixEntry | None:
        """An entry whose keys and values ``reader`` may read: its leading pages are those of the reader's layers."""
        for entry in self._by_digest.get(digest, ()):
            if reader.shares_kv_with(entry.subnet):
                return entry
        return None

    def add(self, digest: bytes, subnet: SubNetwork, pages: Sequence[int]) -> list[int]:
        """Enter pages that are referenced and in no entry. Returns pages that became free: those of entries whose
        readers the new one serves too."""
        siblings = self._by_digest.get(digest, ())
        freed = [page for old in list(siblings) if old.subnet.shares_kv_with(subnet) for page in self.remove(old)]
        entry = PrefixEntry(digest, subnet, tuple(pages))
        self._by_digest.setdefault(digest, []).append(entry)
        self._by_page.update(dict.fromkeys(entry.pages, entry))
        return freed

    def use(self, page: int) -> None:
        """The first sequence references an idle page."""
        entry = self._by_page[page]
        entry.idle.remove(page)
        self.num_idle_pages -= 1
        if not entry.idle:
            del self._idle[entry]

    def release(self, page: int) -> bool:
        """The last sequence dropped ``page``. False if no entry holds it: the page is free."""
        entry = self._by_page.get(page)
        if entry is None:
            return False
        entry.idle.add(page)
        self.num_idle_pages += 1
        self._idle[entry] = None
        self._num_uses += 1
        self._last_use[page] = self._num_uses
        return True

    def touch(self, entry: PrefixEntry) -> None:
        """The entry was used: evict it last."""
        if entry in self._idle:
            self._idle.move_to_end(entry)
            self._num_uses += 1
            self._last_use[list(entry.idle)] = self._num_uses

    def eviction_costs(self, free: Mask) -> npt.NDArray[np.int64]:
        """What losing each idle page costs: 1 for the least recently used, more for later ones; 0 for free pages."""
        oldest = self._last_use[min(next(iter(self._idle)).idle)] if self._idle else 0
        costs: npt.NDArray[np.int64] = self._last_use - (oldest - 1)
        np.maximum(costs, 1, out=costs)
        costs *= ~free
        return costs

    def evict(self) -> list[int]:
        """Remove the least recently used entry that has idle pages; returns those pages: they are free."""
        return self.remove(next(iter(self._idle)))

    def remove_holding(self, page: int) -> list[int]:
        """Remove the entry that holds ``page``, if there is one; returns its idle pages: they are free."""
        entry = self._by_page.get(page)
        return [] if entry is None else self.remove(entry)

    def remove(self, entry: PrefixEntry) -> list[int]:
        """Remove ``entry``; returns its idle pages: they are free. Its other pages stay with their sequences."""
        siblings = self._by_digest[entry.digest]
        siblings.remove(entry)
        if not siblings:
            del self._by_digest[entry.digest]
        for page in entry.pages:
            del self._by_page[page]
        self._idle.pop(entry, None)
        self.num_idle_pages -= len(entry.idle)
        return list(entry.idle)
