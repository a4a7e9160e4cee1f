"""A sequence's share of the cache: its block table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepwell.models.cache.runs import PageIds
from stepwell.models.ladder import SubNetwork


class CacheSequence:
    """The pages of one sequence: row i of ``table`` are those of layer ``subnet.kv_layers[i]``.

    Made by ``PagedKVCache.open``; only the cache changes it.
    """

    def __init__(self, sequence_id: int, subnet: SubNetwork, page_tokens: int, expected_tokens: int) -> None:
        self.sequence_id = sequence_id
        self.subnet = subnet
        """It has pages in the layers where this has attention."""
        self.provenance: SubNetwork | None = subnet
        """A sub-network that would have computed the same keys and values for all committed tokens, in its own layers;
        None if none is known. Blocks are findable as computed by it."""
        self.page_tokens = page_tokens
        self.expected_tokens = expected_tokens
        """Length it is expected to grow to."""
        self.num_tokens = 0
        """Committed tokens: their keys and values are in the pages."""
        self.capacity = 0
        """Tokens the pages have room for."""
        self.version = 0
        """Counts the changes of ``table``."""
        self.digests: list[bytes] = []
        """Digest of each full committed block (see ``prefix.block_digest``)."""
        self.tail_shared = False
        """The block that the next token goes to may be shared or indexed: copy before writing."""
        self._rows = {layer: row for row, layer in enumerate(subnet.kv_layers)}
        self._pages = np.empty((len(self._rows), 8), np.int32)
        self._starts: list[int] = [-1] * len(self._rows)

    @property
    def num_rows(self) -> int:
        """Layers that hold keys and values."""
        return len(self._rows)

    @property
    def num_blocks(self) -> int:
        """Pages per layer."""
        return self.capacity // self.page_tokens

    @property
    def table(self) -> PageIds:
        """Page ids [num_rows, num_blocks], a view: valid until the cache next changes this sequence."""
        return self._pages[:, : self.num_blocks]

    def row_of(self, layer: int) -> int:
        """Row of ``table`` for ``layer``. Raises KeyError if the sub-network has no attention there."""
        return self._rows[layer]

    def covers(self, subnet: SubNetwork) -> bool:
        """Whether there are pages in all layers where ``subnet`` has attention."""
        return subnet is self.subnet or self._rows.keys() >= set(subnet.kv_layers)

    def contiguous_start(self, row: int) -> int:
        """First page of ``row`` if its page ids are consecutive, else -1 (also -1 without pages)."""
        return self._starts[row]

    def slots(self, row: int, start: int, end: int) -> npt.NDArray[np.int64]:
        """Flat slots (page * page_tokens + offset) of the tokens ``start`` .. ``end - 1`` of ``row``: [end - start]."""
        first = self._starts[row]
        if first >= 0:
            return np.arange(first * self.page_tokens + start, first * self.page_tokens + end, dtype=np.int64)
        return self._slots(self._pages[row], start, end)

    def all_slots(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """The slots of every row at once: [num_rows, end - start]."""
        return self._slots(self._pages, start, end)

    def _slots(self, pages: PageIds, start: int, end: int) -> npt.NDArray[np.int64]:
        positions = np.arange(start, end, dtype=np.int64)
        slots: npt.NDArray[np.int64] = pages[..., positions // self.page_tokens] * np.int64(self.page_tokens)
        slots += positions % self.page_tokens
        return slots

    def append(self, pages: PageIds) -> None:
        """Add blocks: [num_rows, blocks]. For the cache only."""
        old, new = self.num_blocks, self.num_blocks + pages.shape[1]
        if new > self._pages.shape[1]:
            grown = np.empty((self.num_rows, max(new, 2 * self._pages.shape[1])), np.int32)
            grown[:, :old] = self.table
            self._pages = grown
        self._pages[:, old:new] = pages
        self.capacity = new * self.page_tokens
        self._renew_starts(old)

    def widen(self, subnet: SubNetwork, pages: PageIds) -> None:
        """Hold ``pages`` [further layers of ``subnet``, num_blocks] too. For the cache only."""
        rows = {layer: row for row, layer in enumerate(subnet.kv_layers)}
        widened = np.empty((len(rows), self._pages.shape[1]), np.int32)
        widened[[rows[layer] for layer in self._rows]] = self._pages
        widened[[row for layer, row in rows.items() if layer not in self._rows], : self.num_blocks] = pages
        self.subnet, self._rows, self._pages = subnet, rows, widened
        self._renew_starts(0)

    def computed_by(self, subnet: SubNetwork) -> None:
        """Further tokens were computed by ``subnet``: note what that makes of the provenance. For the cache only."""
        if self.provenance is None or self.provenance is subnet or self.provenance.shares_kv_with(subnet):
            return
        self.provenance = subnet if subnet.shares_kv_with(self.provenance) else None

    def replace(self, rows: npt.NDArray[np.intp], block: int, pages: PageIds) -> None:
        """Other pages [len(rows)] for one block of some rows. For the cache only."""
        self._pages[rows, block] = pages
        self._renew_starts(0)

    def cut(self, num_blocks: int) -> PageIds:
        """Keep the first ``num_blocks`` blocks; returns the pages of the others [num_rows, ...]. For the cache only."""
        removed: PageIds = self.table[:, num_blocks:].copy()
        self.capacity = num_blocks * self.page_tokens
        self._renew_starts(0)
        return removed

    def _renew_starts(self, first_new: int) -> None:
        """Find the contiguous rows again; blocks before ``first_new`` are as they were."""
        self.version += 1
        table = self.table
        if not table.size:
            self._starts = [-1] * self.num_rows
            return
        consecutive = (np.diff(table[:, max(first_new - 1, 0) :]) == 1).all(axis=1)
        if first_new > 0:
            consecutive &= np.array(self._starts) >= 0
        self._starts = np.where(consecutive, table[:, 0], -1).tolist()
