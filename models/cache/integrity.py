"""The bookkeeping check of the paged cache: no page lost, none owned twice, every count right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell.models.cache.pool import PagePool
from stepwell.models.cache.prefix import PrefixIndex
from stepwell.models.cache.sequence import CacheSequence


def check_cache(pool: PagePool, index: PrefixIndex, sequences: Sequence[CacheSequence]) -> None:
    """Raise AssertionError saying what is wrong.

    Every page is free, or referenced as often as sequences hold it, or idle in the index; no sequence holds a page
    twice; every index entry has a page per layer of its sub-network, each in that entry alone.
    """
    holders = np.zeros(len(pool.refs), np.int32)
    for seq in sequences:
        _check_sequence(seq)
        holders[seq.table] += 1
    _require(np.array_equal(holders, pool.refs), f"reference counts of pages {np.flatnonzero(holders != pool.refs)}")
    indexed = _check_index(pool, index)
    lost = (pool.refs == 0) & ~indexed & ~pool.free
    _require(not lost.any(), f"pages {np.flatnonzero(lost)} are lost")
    owned = pool.free & (indexed | (pool.refs > 0))
    _require(not owned.any(), f"pages {np.flatnonzero(owned)} are free and owned")
    _require(pool.num_free == int(pool.free.sum()), f"num_free is {pool.num_free}, not {pool.free.sum()}")


def _check_sequence(seq: CacheSequence) -> None:
    name = f"sequence {seq.sequence_id}"
    table = seq.table
    _require(table.shape == (len(seq.subnet.kv_layers), seq.num_blocks), f"{name}: table of shape {table.shape}")
    _require(len(np.unique(table)) == table.size, f"{name} holds a page twice")
    _require(seq.num_tokens <= seq.capacity, f"{name}: {seq.num_tokens} tokens in room for {seq.capacity}")
    _require(len(seq.digests) == seq.num_tokens // seq.page_tokens, f"{name}: {len(seq.digests)} digests")
    for row, pages in enumerate(table):
        consecutive = len(pages) > 0 and bool((np.diff(pages) == 1).all())
        start = int(pages[0]) if consecutive else -1
        _require(seq.contiguous_start(row) == start, f"{name}: contiguous_start({row}) is not {start}")


def _check_index(pool: PagePool, index: PrefixIndex) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    indexed = np.zeros(len(pool.refs), np.bool_)
    num_idle = 0
    idle_entries = set(index.idle_entries())
    for entry in index.entries():
        pages = list(entry.pages)
        _require(len(pages) == len(entry.subnet.kv_layers) > 0, "an index entry does not have a page per layer")
        _require(not indexed[pages].any() and len(set(pages)) == len(pages), f"pages {pages} are indexed twice")
        _require(all(page in index for page in pages), f"pages {pages} cannot be found in the index")
        _require(entry.idle == {page for page in pages if pool.refs[page] == 0}, f"idle pages among {pages}")
        _require((entry in idle_entries) == bool(entry.idle), f"eviction order of the entry with pages {pages}")
        indexed[pages] = True
        num_idle += len(entry.idle)
    _require(num_idle == index.num_idle_pages, f"num_idle_pages is {index.num_idle_pages}, not {num_idle}")
    return indexed


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise AssertionError(f"cache integrity: {problem}")
