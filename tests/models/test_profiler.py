"""What is measured of a decoder, and that it is put together as it was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models import profiler
from stepwell.models.cache import PagedKVCache
from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.models.ladder import Ladder, LadderSet, Level, SubNetwork
from stepwell.models.profiler import ROWS, measure_units, sizes, solve, timed
from stepwell.models.unit_profile import UnitProfile, table

CONFIG = DecoderConfig(
    vocab_size=31,
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    ffn_channels=24,
    max_positions=128,
)


def ladders() -> LadderSet:
    levels = [((1, 0, 0), (8, 0, 0)), ((1, 1, 0), (8, 8, 0)), ((2, 2, 2), (24, 24, 24))]
    depth = Ladder("depth", tuple(Level(SubNetwork(groups, channels), 0.9) for groups, channels in levels))
    return LadderSet(CONFIG.architecture, {"depth": depth}, "depth")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(CONFIG).prepare_serving(1 << 20, {8, 24})


def measured(decoder: Decoder, num_pages: int = 3 * 64, seen: list[tuple[int, int]] | None = None) -> UnitProfile:
    cache = PagedKVCache(CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.head_dim, num_pages, page_tokens=16)
    told = [] if seen is None else seen
    units = measure_units(decoder, ladders(), cache, lambda done, total: told.append((done, total)))
    cache.check_integrity()
    assert cache.free_pages == cache.total_pages
    return units


def test_every_unit_that_some_level_runs_is_measured(decoder: Decoder) -> None:
    seen: list[tuple[int, int]] = []
    units = measured(decoder, seen=seen)
    assert set(units.attention_s) == set(units.attend) == {1, 2}
    assert set(units.ffn_s) == {8, 16, 24}, "the widths of levels, and the slice between two of them"
    curves = [units.norm_s, units.output_s, *units.attention_s.values(), *units.ffn_s.values()]
    assert all(len(curve) == len(units.rows) and min(curve) > 0.0 for curve in curves)
    assert units.rows == ROWS
    assert units.shared_context == CONFIG.max_positions + 1
    costs = units.attend[2]
    assert costs.row_s + costs.pair_s + costs.call_s > 0.0  # which of them is a matter of timing
    assert seen[0][0] == 0
    assert all(done < total for done, total in seen)


def test_a_small_cache_is_enough(decoder: Decoder) -> None:
    units = measured(decoder, num_pages=6)
    assert units.attend[1].shared_s + units.attend[1].sequence_s + units.attend[1].key_s > 0.0


def test_sizes_are_those_of_levels_and_of_the_slices_between_them() -> None:
    assert sizes(ladders(), "ffn_channels") == [8, 16, 24]
    assert sizes(ladders(), "kv_groups") == [1, 2]


class Clock:
    """A clock that only the measured work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, durations: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            self.now += next(durations)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(profiler, "time", made)
    return made


def test_the_lower_quartile_counts_and_the_warm_up_does_not(clock: Clock) -> None:
    repeats = [0.0, 7.0, 1.0, 3.0, 2.0, 9.0, 4.0, 5.0]
    assert timed({"a": clock.work(iter([0.4, *(0.01 * each for each in repeats[1:])]))}) == {"a": pytest.approx(0.02)}


def test_cases_take_turns(clock: Clock) -> None:
    order: list[str] = []
    timed({name: lambda name=name: order.append(name) for name in "ab"})  # type: ignore[misc]
    assert order == ["a", "b"] * (1 + profiler.REPEATS)


def test_slow_cases_are_not_repeated_and_a_slow_machine_gets_fewer_turns(clock: Clock) -> None:
    runs = {"slow": 0, "quick": 0}

    def case(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            runs[name] += 1
            clock.now += seconds

        return run

    seconds = timed({"slow": case("slow", profiler.BUDGET_S), "quick": case("quick", 0.1)})
    assert seconds == pytest.approx({"slow": profiler.BUDGET_S, "quick": 0.1})
    assert runs == {"slow": 1, "quick": 2}


def test_rows_end_where_units_get_slow(clock: Clock) -> None:
    def unit(rows: int) -> Callable[[], None]:
        return clock.work(iter([0.04 * rows] * 9))

    assert profiler._rows_in_time([unit, unit]) == (1, 2, 4, 8)


@given(st.lists(st.floats(1e-6, 1e-2), min_size=3, max_size=3))
def test_prices_are_found_again(prices: list[float]) -> None:
    features = [(1.0, n, n * c) for n in (1, 4, 16) for c in (16.0, 128.0)]
    seconds = [sum(p * f for p, f in zip(prices, row, strict=True)) for row in features]
    assert solve(features, seconds) == pytest.approx(prices, rel=1e-3, abs=1e-9)


@given(st.lists(st.floats(1e-6, 1.0), min_size=5, max_size=5))
def test_prices_are_never_negative(seconds: list[float]) -> None:
    prices = solve([(1.0, n, n * n, 0.0) for n in range(1, 6)], seconds)
    assert min(prices) >= 0.0
    assert prices[3] == 0.0, "what never occurs has no price"


def test_tables_run_straight_between_measurements_and_beyond() -> None:
    assert table([1, 4, 8], [5.0, 8.0, 16.0], 11) == [0.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0]


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=len(ROWS)))
def test_tables_never_fall(seconds: list[float]) -> None:
    values = table(ROWS[: len(seconds)], seconds, 600)
    assert values[0] == 0.0
    assert all(later >= before - 1e-12 for before, later in pairwise(values))
    assert values[1] == min(seconds)
