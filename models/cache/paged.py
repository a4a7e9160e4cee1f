"""The paged key-value cache: pages of one layer each from one common pool, shared between sequences by content.

A sequence holds pages only for the layers its sub-network runs. Pages computed by one sub-network serve another if
every key and value the reader needs is the same (``SubNetwork.shares_kv_with``); the index remembers who computed
them. Full blocks are never written again while anybody else may read them: ``reserve`` copies them first.

A generation that changes level is one sequence: ``widen`` gives it pages in further layers, ``commit`` is told which
sub-network ran. Its blocks enter the index as computed by its *provenance*: the sub-network that would have computed
the same keys and values for all its tokens so far. That is the shallowest of those that ran where each is the start of
the next (so only the pages of its layers are indexed, and those above may still have holes or be written later by a
backfill), and none once widths disagree (then no further block is indexed). It never grows again.

The life of a sequence: ``open``, perhaps ``match_prefix``; then for every step ``reserve``, run the model, ``commit``;
``free`` at the end. Not thread-safe: one engine thread owns a cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepwell.models.cache.integrity import check_cache
from stepwell.models.cache.ledger import PageLedger
from stepwell.models.cache.pool import OutOfPages
from stepwell.models.cache.prefix import EMPTY_DIGEST, block_digest
from stepwell.models.cache.runs import PageIds
from stepwell.models.cache.sequence import CacheSequence
from stepwell.models.ladder import SubNetwork


class PagedKVCache:
    """Pages, their owners and, unless ``with_storage=False`` (simulation), their contents.

    Args:
        num_layers: layers of the full model.
        num_kv_heads, head_dim: of a key or value of one layer.
        num_pages: pages in the pool, over all layers.
        page_tokens: tokens a page holds.
        dtype, device: of the storage.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_tokens: int = 32,
        dtype: torch.dtype = torch.float32,
        with_storage: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(num_layers, num_kv_heads, head_dim, num_pages, page_tokens) < 1:
            raise ValueError("num_layers, num_kv_heads, head_dim, num_pages, page_tokens: all must be >= 1")
        self.num_layers = num_layers
        self.page_tokens = page_tokens
        self.keys: Tensor | None = None
        """[num_kv_heads, num_pages, page_tokens, head_dim]: the keys of a head and sequence are one stream in memory
        when its pages are consecutive, which reads 1.6 times faster than token by token."""
        self.values: Tensor | None = None
        if with_storage:
            # Zeros, not garbage: a masked read of an unwritten slot must not meet a NaN.
            shape = (num_kv_heads, num_pages, page_tokens, head_dim)
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._ledger = PageLedger(num_pages)
        self._sequences: dict[int, CacheSequence] = {}
        self._num_opened = 0

    @property
    def total_pages(self) -> int:
        """Pages in the pool."""
        return len(self._ledger.pool.refs)

    @property
    def free_pages(self) -> int:
        """Pages that an allocation can get: free ones, and those that only the prefix index holds."""
        return self._ledger.num_available

    @property
    def cached_pages(self) -> int:
        """Pages that only the prefix index holds."""
        return self._ledger.index.num_idle_pages

    @property
    def usage_ratio(self) -> float:
        """Share of the pages that sequences hold, 0..1."""
        return 1.0 - self.free_pages / self.total_pages

    def pages_for(self, subnet: SubNetwork, num_tokens: int) -> int:
        """Pages that a sequence of ``num_tokens`` on ``subnet`` holds if it shares none."""
        return len(subnet.kv_layers) * self._num_blocks(num_tokens)

    def open(self, subnet: SubNetwork, expected_tokens: int | None = None) -> CacheSequence:
        """A new empty sequence. ``expected_tokens``: the length it may grow to, for which room is kept if possible."""
        if len(subnet.kv_groups) != self.num_layers:
            raise ValueError(f"subnet: {len(subnet.kv_groups)} layers, the cache has {self.num_layers}")
        self._num_opened += 1
        seq = CacheSequence(self._num_opened, subnet, self.page_tokens, expected_tokens or 0)
        self._sequences[seq.sequence_id] = seq
        return seq

    def match_prefix(self, seq: CacheSequence, token_ids: Sequence[int]) -> int:
        """Share the cached pages of the longest known prefix of ``token_ids`` with the empty sequence ``seq``.

        Returns the tokens reused, at most ``len(token_ids) - 1``: the last token must run to give logits.
        """
        self._check_open(seq)
        if seq.num_tokens or seq.capacity:
            raise ValueError("match_prefix: the sequence already has tokens or pages")
        digest, columns = EMPTY_DIGEST, []
        for block in range(min(len(token_ids) // self.page_tokens, self._num_blocks(len(token_ids) - 1))):
            digest = self._digest(digest, token_ids, block)
            entry = self._ledger.index.find(digest, seq.subnet)
            if entry is None:
                break
            self._ledger.index.touch(entry)
            seq.digests.append(digest)
            columns.append(entry.pages[: seq.num_rows])
        if columns:
            seq.append(self._ledger.share(np.array(columns, np.int32).T))
            self._set_length(seq, min(seq.capacity, len(token_ids) - 1))
        return seq.num_tokens

    def reserve(self, seq: CacheSequence, num_tokens: int) -> None:
        """Make room for ``num_tokens`` tokens in all; tokens from ``seq.num_tokens`` on may then be written.

        Shared pages that would be written are copied. Raises OutOfPages with nothing changed. Holds until the next
        ``fork`` or ``truncate`` of the sequence.
        """
        if num_tokens <= seq.capacity and not seq.tail_shared:
            return
        self._check_open(seq)
        if num_tokens <= seq.num_tokens:
            return
        new_blocks = max(self._num_blocks(num_tokens) - seq.num_blocks, 0)
        copies = self._tail_rows_to_copy(seq, new_blocks * seq.num_rows)
        if len(copies):
            self._copy_tail(seq, copies)
        seq.tail_shared = False
        if new_blocks:
            self._grow(seq, new_blocks)

    def widen(self, seq: CacheSequence, subnet: SubNetwork) -> None:
        """Make room in all layers where ``subnet`` has attention, for as many tokens as there is room in others.

        Nothing to do if there are such pages already. What the committed tokens have in the new layers must be written
        before it is read. Raises OutOfPages with nothing changed.
        """
        self._check_open(seq)
        if seq.covers(subnet):
            return
        missing = set(subnet.kv_layers) - set(seq.subnet.kv_layers)
        if not set(seq.subnet.kv_layers) <= set(subnet.kv_layers):
            raise ValueError("widen: the sub-network leaves out layers that the sequence has pages in")
        if len(missing) * seq.num_blocks > self.free_pages:
            raise OutOfPages(len(missing) * seq.num_blocks, self.free_pages)
        pages: PageIds = np.empty((len(missing), 0), np.int32)
        if seq.num_blocks:
            room = max(self._num_blocks(seq.expected_tokens), seq.num_blocks)
            anew = np.full(len(missing), -1, np.int32)
            pages = self._ledger.allocate(seq.sequence_id, anew, seq.num_blocks, room)
            self._zero(pages)
        seq.widen(subnet, pages)

    def commit(self, seq: CacheSequence, token_ids: Sequence[int], subnet: SubNetwork | None = None) -> None:
        """The keys and values of ``token_ids``, all tokens of the sequence so far, are now in its pages.

        Those not committed before were computed by ``subnet`` (None: the one it was opened with). Full blocks enter the
        prefix index.
        """
        num_tokens = len(token_ids)
        if not seq.num_tokens <= num_tokens <= seq.capacity or (seq.tail_shared and num_tokens > seq.num_tokens):
            raise ValueError(
                f"commit: {num_tokens} tokens, {seq.num_tokens} committed, room for {seq.capacity}; reserve first, "
                "and truncate to go back"
            )
        if num_tokens > seq.num_tokens:
            seq.computed_by(subnet or seq.subnet)
        for block in range(len(seq.digests), num_tokens // self.page_tokens):
            seq.digests.append(self._digest(seq.digests[-1] if seq.digests else EMPTY_DIGEST, token_ids, block))
            self._register(seq, block)
        seq.num_tokens = num_tokens

    def fork(self, seq: CacheSequence) -> CacheSequence:
        """A new sequence with the same committed tokens; all pages are shared until one of the two writes new tokens.

        Layers that some of the committed tokens left out may not be filled in afterwards: the other one reads them too.
        """
        self._check_open(seq)
        child = self.open(seq.subnet, seq.expected_tokens)
        child.digests, child.provenance = list(seq.digests), seq.provenance
        if seq.num_tokens:
            child.append(self._ledger.share(seq.table[:, : self._num_blocks(seq.num_tokens)]))
        for each in (seq, child):
            self._set_length(each, seq.num_tokens)
        return child

    def truncate(self, seq: CacheSequence, num_tokens: int) -> None:
        """Keep the first ``num_tokens`` committed tokens; pages beyond them are given back."""
        self._check_open(seq)
        if not 0 <= num_tokens <= seq.num_tokens:
            raise ValueError(f"truncate: expected 0..{seq.num_tokens} committed tokens, got {num_tokens}")
        self._ledger.release(seq.cut(self._num_blocks(num_tokens)))
        self._set_length(seq, num_tokens)

    def free(self, seq: CacheSequence) -> None:
        """Give back all pages; the sequence may not be used again. What the prefix index knows stays findable."""
        self.truncate(seq, 0)
        self._ledger.pool.unclaim(seq.sequence_id)
        del self._sequences[seq.sequence_id]

    def check_integrity(self) -> None:
        """Raise AssertionError if a page is lost, owned twice, or miscounted."""
        check_cache(self._ledger.pool, self._ledger.index, list(self._sequences.values()))

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)

    def _digest(self, parent: bytes, token_ids: Sequence[int], block: int) -> bytes:
        return block_digest(parent, token_ids[block * self.page_tokens : (block + 1) * self.page_tokens])

    def _check_open(self, seq: CacheSequence) -> None:
        if self._sequences.get(seq.sequence_id) is not seq:
            raise ValueError("the sequence was freed, or belongs to another cache")

    def _set_length(self, seq: CacheSequence, num_tokens: int) -> None:
        seq.num_tokens = num_tokens
        del seq.digests[num_tokens // self.page_tokens :]
        seq.tail_shared = num_tokens % self.page_tokens != 0

    def _register(self, seq: CacheSequence, block: int) -> None:
        if seq.provenance is not None and seq.provenance.kv_layers:
            rows = [seq.row_of(layer) for layer in seq.provenance.kv_layers]
            self._ledger.register(seq.digests[block], seq.provenance, seq.table[rows, block].tolist())

    def _tail_rows_to_copy(self, seq: CacheSequence, growth: int) -> npt.NDArray[np.intp]:
        """Rows whose block at ``seq.num_tokens`` may not be written in place. Raises OutOfPages if they and ``growth``
        more pages cannot be had.

        A page that only the index shares is copied, to keep it cached, if there are pages to spare; else forgotten.
        """
        available = self.free_pages
        tail = seq.table[:, seq.num_tokens // self.page_tokens] if seq.tail_shared else np.empty(0, np.int32)
        shared = self._ledger.pool.refs[tail] > 1
        if growth + int(shared.sum()) > available:
            raise OutOfPages(growth + int(shared.sum()), available)
        indexed = np.array([page in self._ledger.index for page in tail.tolist()], np.bool_)
        if growth + int((shared | indexed).sum()) <= available:
            return np.flatnonzero(shared | indexed)
        self._ledger.forget(tail[indexed & ~shared].tolist())
        return np.flatnonzero(shared)

    def _copy_tail(self, seq: CacheSequence, rows: npt.NDArray[np.intp]) -> None:
        block = seq.num_tokens // self.page_tokens
        old = seq.table[rows, block]
        new = self._allocate(seq, np.full(len(rows), -1, np.int32), 1)[:, 0]
        for storage in (self.keys, self.values):
            if storage is not None:
                storage[:, torch.from_numpy(new)] = storage[:, torch.from_numpy(old)]
        seq.replace(rows, block, new)
        self._ledger.release(old[:, None])

    def _grow(self, seq: CacheSequence, num_blocks: int) -> None:
        last = seq.table[:, -1] if seq.num_blocks else np.full(seq.num_rows, -1, np.int32)
        pages = self._allocate(seq, last, num_blocks)
        self._zero(pages[:, -1])  # only the last new block may be read before it is full
        seq.append(pages)

    def _zero(self, pages: PageIds) -> None:
        """Clear what former owners left: where it is read it is masked, but a masked NaN would still spoil the sum."""
        for storage in (self.keys, self.values):
            if storage is not None:
                storage.index_fill_(1, torch.from_numpy(pages.ravel().astype(np.int64)), 0.0)

    def _allocate(self, seq: CacheSequence, last: PageIds, num_blocks: int) -> PageIds:
        room = max(self._num_blocks(seq.expected_tokens) - seq.num_blocks, num_blocks)
        return self._ledger.allocate(seq.sequence_id, last, num_blocks, room)
