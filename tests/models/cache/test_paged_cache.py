"""Prefix reuse, provenance, copy-on-write, reclaiming and contiguity, one case each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stepwell.models.cache import CacheSequence, OutOfPages, PagedKVCache
from stepwell.models.ladder import SubNetwork

MakeCache = Callable[..., PagedKVCache]


def run(cache: PagedKVCache, subnet: SubNetwork, token_ids: list[int], expected: int | None = None) -> CacheSequence:
    """A sequence that has computed ``token_ids``."""
    seq = cache.open(subnet, expected)
    cache.match_prefix(seq, token_ids)
    cache.reserve(seq, len(token_ids))
    cache.commit(seq, token_ids)
    return seq


def num_matched(cache: PagedKVCache, subnet: SubNetwork, token_ids: list[int]) -> int:
    """Tokens that a new sequence would reuse."""
    seq = cache.open(subnet)
    matched = cache.match_prefix(seq, token_ids)
    cache.free(seq)
    return matched


def test_holds_pages_only_for_layers_it_runs(make_cache: MakeCache, full: SubNetwork, shallow: SubNetwork) -> None:
    cache = make_cache(20)
    seq = run(cache, shallow, [1, 2, 3, 4, 5])
    assert seq.table.shape == (2, 2)
    assert cache.total_pages - cache.free_pages == 4 == cache.pages_for(shallow, 5)
    assert [seq.row_of(layer) for layer in (0, 1)] == [0, 1]
    with pytest.raises(KeyError):
        seq.row_of(2)
    skips = run(cache, SubNetwork((2, 0, 2), (8, 8, 8)), [9])
    assert (skips.row_of(0), skips.row_of(2)) == (0, 1)


def test_full_blocks_are_reused_while_live_and_after_free(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(20)
    seq = run(cache, full, [1, 2, 3, 4, 5, 6])
    other = cache.open(full)
    assert cache.match_prefix(other, [1, 2, 3, 4, 5, 6, 7]) == 4  # the second block was not full
    assert other.table.tolist() == seq.table[:, :1].tolist()
    cache.free(seq)
    cache.free(other)
    assert cache.cached_pages == 3
    assert num_matched(cache, full, [1, 2, 3, 4, 9]) == 4
    assert num_matched(cache, full, [1, 2, 3, 9, 9]) == 0
    assert num_matched(cache, full, [9, 1, 2, 3, 4]) == 0


def test_last_token_is_never_reused(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(40)
    cache.free(run(cache, full, [1, 2, 3, 4, 5, 6, 7, 8]))
    assert num_matched(cache, full, [1, 2, 3, 4, 5, 6, 7, 8]) == 7
    assert num_matched(cache, full, [1, 2, 3, 4]) == 3
    assert num_matched(cache, full, []) == 0
    single = make_cache(12, page_tokens=1)
    live = run(single, full, [1, 2])
    assert not set(live.table[:, 1]) & set(run(single, full, [1, 2]).table[:, 1])


def test_shallow_reads_deep_but_not_the_reverse(
    make_cache: MakeCache, full: SubNetwork, shallow: SubNetwork, narrow: SubNetwork
) -> None:
    cache = make_cache(40)
    deep = run(cache, full, [1, 2, 3, 4, 5])
    reader = cache.open(shallow)
    assert cache.match_prefix(reader, [1, 2, 3, 4, 5]) == 4
    assert reader.table.tolist() == deep.table[:2, :1].tolist()
    assert num_matched(cache, narrow, [1, 2, 3, 4, 5]) == 0
    run(cache, shallow, [5, 6, 7, 8])
    assert num_matched(cache, full, [5, 6, 7, 8, 9]) == 0


def test_entries_that_a_deeper_one_serves_too_are_superseded(
    make_cache: MakeCache, full: SubNetwork, shallow: SubNetwork
) -> None:
    cache = make_cache(20)
    cache.free(run(cache, shallow, [1, 2, 3, 4]))
    assert cache.cached_pages == 2
    cache.free(run(cache, full, [1, 2, 3, 4]))
    assert cache.cached_pages == 3  # the shallow ones are free
    assert num_matched(cache, shallow, [1, 2, 3, 4, 5]) == 4


def test_whole_last_page_match_is_copied_before_the_write(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(20, with_storage=True)
    first = run(cache, full, [1, 2, 3, 4])
    cache.keys[:, first.table[:, 0]] = 7.0
    cached = first.table.copy()
    cache.free(first)
    seq = cache.open(full)
    assert cache.match_prefix(seq, [1, 2, 3, 4]) == 3
    assert seq.table.tolist() == cached.tolist()
    with pytest.raises(ValueError, match="reserve first"):
        cache.commit(seq, [1, 2, 3, 4])
    cache.reserve(seq, 4)
    assert not set(seq.table.ravel()) & set(cached.ravel())
    assert cache.keys[:, seq.table[:, 0]].eq(7.0).all()
    cache.commit(seq, [1, 2, 3, 4])
    assert cache.cached_pages == 3  # the old pages stay findable


def test_without_spare_pages_a_cached_page_is_written_in_place(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(3)
    cache.free(run(cache, full, [1, 2, 3, 4]))
    seq = cache.open(full)
    assert cache.match_prefix(seq, [1, 2, 3, 4]) == 3
    pages = seq.table.tolist()
    cache.reserve(seq, 4)
    assert seq.table.tolist() == pages
    reader = cache.open(full)
    assert cache.match_prefix(reader, [1, 2, 3, 4, 5]) == 0  # forgotten, since it is about to change
    cache.commit(seq, [1, 2, 3, 4])
    assert cache.match_prefix(reader, [1, 2, 3, 4, 5]) == 4


def test_forks_share_until_one_writes(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(20, with_storage=True)
    parent = run(cache, full, [1, 2, 3, 4, 5])
    child = cache.fork(parent)
    assert cache.total_pages - cache.free_pages == 6
    cache.reserve(child, 6)
    assert child.table[:, 0].tolist() == parent.table[:, 0].tolist()
    assert not set(child.table[:, 1]) & set(parent.table[:, 1])
    before = parent.table.tolist()
    cache.reserve(parent, 6)  # it is the only holder now
    assert parent.table.tolist() == before


def test_out_of_pages_changes_nothing_and_says_how_many(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(7)
    seq = run(cache, full, [1, 2, 3, 4])
    version = seq.version
    with pytest.raises(OutOfPages, match="6 needed, 4 free") as caught:
        cache.reserve(seq, 9)
    assert (caught.value.needed, caught.value.available) == (6, 4)
    assert (seq.version, seq.capacity, cache.free_pages) == (version, 4, 4)
    cache.reserve(seq, 8)


def test_reclaims_the_least_recently_used_prefix_from_its_end(make_cache: MakeCache) -> None:
    cache = make_cache(4)
    one_layer = SubNetwork((2, 0, 0), (8, 0, 0))
    old, new = [1] * 8, [2] * 4
    cache.free(run(cache, one_layer, old))
    cache.free(run(cache, one_layer, new))
    assert (cache.cached_pages, cache.free_pages) == (3, 4)

    def known() -> list[int]:
        return [num_matched(cache, one_layer, [*prompt, 0]) for prompt in (old, new)]

    holders = [run(cache, one_layer, [3])]
    assert known() == [8, 4]  # there was a free page
    holders.append(run(cache, one_layer, [4]))
    assert known() == [4, 4]
    holders.append(run(cache, one_layer, [5]))  # looking `new` up last made `old` the older
    assert known() == [0, 4]
    for seq in holders:
        cache.free(seq)


def test_widening_adds_pages_in_further_layers_for_all_blocks(
    make_cache: MakeCache, full: SubNetwork, shallow: SubNetwork
) -> None:
    cache = make_cache(40, with_storage=True)
    cache.keys.fill_(float("nan"))
    seq = run(cache, shallow, [1, 2, 3, 4, 5], expected=12)
    before = seq.table.tolist()
    cache.widen(seq, full)
    assert seq.table[:2].tolist() == before
    assert (seq.table.shape, seq.row_of(2), seq.capacity) == ((3, 2), 2, 8)
    assert seq.contiguous_start(2) == seq.table[2, 0]
    assert cache.keys[:, seq.table[2]].eq(0.0).all()
    version = seq.version
    cache.widen(seq, shallow)
    cache.widen(seq, full)
    assert seq.version == version
    cache.reserve(seq, 12)
    assert seq.contiguous_start(2) >= 0, "room to grow was kept in the new layer too"
    with pytest.raises(ValueError, match="leaves out layers"):
        cache.widen(run(cache, SubNetwork((2, 0, 2), (8, 8, 8)), [9]), shallow)


def test_layers_are_inserted_where_they_belong(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(40)
    seq = run(cache, SubNetwork((0, 2, 0), (8, 8, 8)), [1] * 9)
    (pages,) = seq.table.tolist()
    cache.widen(seq, full)
    assert seq.table[1].tolist() == pages
    assert [seq.row_of(layer) for layer in range(3)] == [0, 1, 2]
    unused = cache.open(SubNetwork((0, 0, 0), (8, 0, 0)))
    cache.widen(unused, full)
    assert unused.table.shape == (3, 0)


def test_widening_without_pages_changes_nothing(make_cache: MakeCache, full: SubNetwork, shallow: SubNetwork) -> None:
    cache = make_cache(5)
    seq = run(cache, shallow, [1, 2, 3, 4, 5])
    before, version = seq.table.tolist(), seq.version
    with pytest.raises(OutOfPages, match="2 needed, 1 free"):
        cache.widen(seq, full)
    assert (seq.table.tolist(), seq.version, seq.subnet, cache.free_pages) == (before, version, shallow, 1)


def test_blocks_are_found_as_computed_by_the_shallowest_so_far(
    make_cache: MakeCache, full: SubNetwork, shallow: SubNetwork
) -> None:
    cache = make_cache(60)
    seq = run(cache, full, [1, 2, 3, 4, 5])
    for token_ids, subnet in (([1, 2, 3, 4, 5, 6], shallow), ([1, 2, 3, 4, 5, 6, 7, 8], full), ([*range(1, 13)], full)):
        cache.reserve(seq, len(token_ids))
        cache.commit(seq, token_ids, subnet)
    assert num_matched(cache, full, [*range(1, 14)]) == 4
    assert num_matched(cache, shallow, [*range(1, 14)]) == 12


def test_blocks_of_mixed_widths_are_not_found(make_cache: MakeCache, full: SubNetwork, narrow: SubNetwork) -> None:
    cache = make_cache(60)
    seq = run(cache, full, [1, 2, 3, 4, 5])
    for token_ids, subnet in (([1, 2, 3, 4, 5, 6, 7, 8], narrow), ([*range(1, 13)], full)):
        cache.reserve(seq, len(token_ids))
        cache.commit(seq, token_ids, subnet)
    one_layer = SubNetwork((2, 0, 0), (0, 0, 0))
    assert [num_matched(cache, s, [*range(1, 14)]) for s in (full, narrow, one_layer)] == [4, 0, 4]


def test_truncate_gives_pages_back_and_protects_cached_ones(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(20)
    seq = run(cache, full, list(range(10)))
    cached = seq.table[:, 1].tolist()
    cache.truncate(seq, 6)
    assert (seq.num_tokens, seq.capacity) == (6, 8)
    cache.reserve(seq, 8)
    assert not set(seq.table[:, 1].tolist()) & set(cached)
    cache.commit(seq, [0, 1, 2, 3, 4, 5, 9, 9])
    assert num_matched(cache, full, list(range(10))) == 8
    assert num_matched(cache, full, [0, 1, 2, 3, 4, 5, 9, 9, 9]) == 8
    with pytest.raises(ValueError, match=r"0\.\.8 committed"):
        cache.truncate(seq, 9)


def test_interleaved_growth_stays_contiguous(make_cache: MakeCache, full: SubNetwork, shallow: SubNetwork) -> None:
    cache = make_cache(3 * 10 * 6)
    prompts = [[i] * (3 + i) for i in range(6)]
    seqs = [run(cache, (full, shallow)[i % 2], prompt, expected=40) for i, prompt in enumerate(prompts)]
    for length in range(10, 41):
        for seq, prompt in zip(seqs, prompts, strict=True):
            cache.reserve(seq, length)
            cache.commit(seq, prompt + [0] * (length - len(prompt)))
    for seq in seqs:
        assert [seq.contiguous_start(row) for row in range(seq.num_rows)] == seq.table[:, 0].tolist()


def test_new_sequences_stay_contiguous_when_the_pool_is_full_of_cached_prefixes(
    make_cache: MakeCache, full: SubNetwork
) -> None:
    cache = make_cache(3 * 10 * 3)
    for i in range(20):
        seq = run(cache, full, [i] * 10, expected=40)
        for length in range(11, 41):
            cache.reserve(seq, length)
            cache.commit(seq, [i] * length)
        assert seq.contiguous_start(0) >= 0
        cache.free(seq)
    assert cache.cached_pages >= 60


def test_room_kept_for_growth_never_makes_an_allocation_fail(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(30)
    keeper = run(cache, full, [1], expected=40)  # all 30 pages
    other = run(cache, full, [2] * 30)
    assert other.num_blocks == 8
    assert cache.free_pages == 3
    cache.reserve(keeper, 8)
    assert cache.free_pages == 0


def test_slots_are_page_times_size_plus_offset(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(30)
    run(cache, full, [9] * 4, expected=4)
    seq = run(cache, full, [1] * 4, expected=4)
    run(cache, full, [8] * 4, expected=4)
    cache.reserve(seq, 10)
    assert seq.contiguous_start(0) == -1
    pages = seq.table[0].tolist()
    wanted = [pages[p // 4] * 4 + p % 4 for p in range(2, 10)]
    assert seq.slots(0, 2, 10).tolist() == wanted == seq.all_slots(2, 10)[0].tolist()


def test_misuse_is_refused(make_cache: MakeCache, full: SubNetwork) -> None:
    cache = make_cache(12)
    with pytest.raises(ValueError, match="1 layers, the cache has 3"):
        cache.open(SubNetwork((1,), (1,)))
    with pytest.raises(ValueError, match=">= 1"):
        make_cache(0)
    seq = run(cache, full, [1, 2])
    with pytest.raises(ValueError, match="already has tokens"):
        cache.match_prefix(seq, [1, 2])
    with pytest.raises(ValueError, match="room for 4"):
        cache.commit(seq, [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="2 committed"):
        cache.commit(seq, [1])
    cache.free(seq)
    for call in (cache.free, cache.fork, lambda gone: cache.reserve(gone, 1)):
        with pytest.raises(ValueError, match="freed"):
            call(seq)


@pytest.mark.parametrize("damage", ["lost", "double", "index"])
def test_check_integrity_finds_damage(damage: str, full: SubNetwork) -> None:
    cache = PagedKVCache(3, 1, 1, 12, 4, with_storage=False)
    seq = run(cache, full, [1, 2, 3, 4, 5])
    cache.check_integrity()
    if damage == "lost":
        cache._sequences.clear()
    elif damage == "double":
        seq.table[1, 1] = seq.table[0, 1]
    else:
        cache._ledger.pool.put_back([int(seq.table[0, 0])])
    with pytest.raises(AssertionError, match="cache integrity"):
        cache.check_integrity()
