"""Counting pages gives the same simulation as naming them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.models.cache import OutOfPages
from stepwell.models.ladder import Architecture
from stepwell.serving.replay.counting_cache import CountingCache, CountingEndsError
from stepwell.serving.replay.simulate import simulate

FULL = Architecture(num_layers=3, num_kv_groups=2, ffn_channels=8).full


def with_the_real_cache(workload):
    """The same lengths; but with prefixes, though all different, only the real cache will do."""
    arrivals = tuple(replace(a, prefix=(1000 + number,)) for number, a in enumerate(workload.arrivals))
    return replace(workload, arrivals=arrivals)


@pytest.mark.parametrize("num_pages", [4000, 400, 200])
@pytest.mark.parametrize("policy", ["max_quality", "fixed:min", "staircase"])
def test_the_simulation_is_the_same(make_setup, make_workload, num_pages, policy):
    """With 400 pages newcomers wait for some; with 200 requests that run are put back."""
    rng = random.Random(num_pages)
    workload = make_workload(
        *((rng.random(), rng.randint(1, 100), rng.randint(1, 60), rng.choice(("relaxed", "tight"))) for _ in range(60))
    )
    setup = make_setup(policy, num_pages, noise=0.1)
    assert simulate(workload, setup) == simulate(with_the_real_cache(workload), setup)


def test_counting_ends_where_somebody_would_be_put_back():
    cache = CountingCache(3, 12, 4)
    seq, other = cache.open(FULL, 20), cache.open(FULL, 20)
    cache.reserve(seq, 8)
    assert (cache.free_pages, seq.capacity, seq.num_blocks) == (6, 8, 2)
    with pytest.raises(OutOfPages):
        cache.reserve(other, 12)
    cache.reserve(other, 8)
    with pytest.raises(CountingEndsError):
        cache.reserve(seq, 9)
    cache.free(other)
    cache.reserve(seq, 9)
    cache.check_integrity()
    cache.free(seq)
    assert cache.free_pages == cache.total_pages == 12


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), max_size=40))
@settings(max_examples=30)
def test_no_page_is_lost(actions):
    cache, sequences = CountingCache(3, 60, 4), []
    for action, size in actions:
        if action == 0 or not sequences:
            sequences.append(cache.open(FULL))
        elif action == 1:
            cache.free(sequences.pop(size % len(sequences)))
        else:
            seq = sequences[size % len(sequences)]
            needed = 3 * max(0, -(-size // 4) - seq.num_blocks)
            if needed <= cache.free_pages:
                cache.reserve(seq, size)
                assert seq.capacity >= size
        cache.check_integrity()
