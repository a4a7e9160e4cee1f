"""A cache that counts pages instead of naming them: several times faster, and enough for most simulations.

As long as no prompt starts like another one and no sequence that runs is put back (it could find its own pages again),
how many pages are free is all that the engine sees of its cache, and the count is the same as the real cache's. The
moment somebody would have to be put back, :class:`CountingEndsError` is raised: the simulation starts again with the
real one.
"""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.models.cache import CacheSequence, OutOfPages, PagedKVCache
from stepwell.models.ladder import SubNetwork


class CountingEndsError(BaseException):
    """Counting pages is not enough any more. Not an Exception: no part of the engine is to handle it."""


class CountedSequence(CacheSequence):
    """A sequence that knows how many pages it has."""

    def __init__(self, sequence_id: int, subnet: SubNetwork, page_tokens: int) -> None:
        self.sequence_id, self.subnet, self.page_tokens = sequence_id, subnet, page_tokens
        self.num_tokens = self.capacity = 0

    @property
    def num_rows(self) -> int:
        """Layers that hold keys and values."""
        return len(self.subnet.kv_layers)

    def covers(self, subnet: SubNetwork) -> bool:
        """Whether there are pages in all layers where ``subnet`` has attention."""
        return subnet is self.subnet or set(subnet.kv_layers) <= set(self.subnet.kv_layers)


class CountingCache(PagedKVCache):
    """What the engine uses of a cache, by count."""

    def __init__(self, num_layers: int, num_pages: int, page_tokens: int) -> None:
        super().__init__(num_layers, 1, 1, num_pages, page_tokens, with_storage=False)
        self._num_pages = self._num_free = num_pages
        self._open_sequences: dict[int, CacheSequence] = {}

    @property
    def total_pages(self) -> int:
        """Pages in the pool."""
        return self._num_pages

    @property
    def free_pages(self) -> int:
        """Pages that an allocation can get."""
        return self._num_free

    def open(self, subnet: SubNetwork, expected_tokens: int | None = None) -> CacheSequence:
        """A new empty sequence."""
        self._num_opened += 1
        seq = CountedSequence(self._num_opened, subnet, self.page_tokens)
        self._open_sequences[seq.sequence_id] = seq
        return seq

    def match_prefix(self, seq: CacheSequence, token_ids: Sequence[int]) -> int:
        """Nothing is shared."""
        return 0

    def reserve(self, seq: CacheSequence, num_tokens: int) -> None:
        """Make room for ``num_tokens`` tokens in all. Raises OutOfPages if it is new, else CountingEndsError."""
        if num_tokens <= seq.capacity:
            return
        blocks = -(-num_tokens // self.page_tokens)
        growth = (blocks - seq.num_blocks) * seq.num_rows
        if growth > self._num_free:
            if seq.capacity:
                raise CountingEndsError
            raise OutOfPages(growth, self._num_free)
        self._num_free -= growth
        seq.capacity = blocks * self.page_tokens

    def widen(self, seq: CacheSequence, subnet: SubNetwork) -> None:
        """Make room in all layers where ``subnet`` has attention. Raises OutOfPages with nothing changed."""
        if seq.covers(subnet):
            return
        growth = (len(subnet.kv_layers) - seq.num_rows) * seq.num_blocks
        if growth > self._num_free:
            raise OutOfPages(growth, self._num_free)
        self._num_free -= growth
        seq.subnet = subnet

    def commit(self, seq: CacheSequence, token_ids: Sequence[int], subnet: SubNetwork | None = None) -> None:
        """The keys and values of ``token_ids`` are there."""
        seq.num_tokens = len(token_ids)

    def free(self, seq: CacheSequence) -> None:
        """Give back all pages; the sequence may not be used again."""
        del self._open_sequences[seq.sequence_id]
        self._num_free += seq.num_blocks * seq.num_rows

    def check_integrity(self) -> None:
        """Raise AssertionError if a page is lost, or held twice."""
        held = sum(seq.num_blocks * seq.num_rows for seq in self._open_sequences.values())
        assert held + self._num_free == self._num_pages, f"{held} pages held, {self._num_free} free"
