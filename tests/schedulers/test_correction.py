"""The running ratio: its median, its 90th percentile, and what happens when the machine changes under it."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.correction import MOST_OFF, NEWEST, WINDOW, OnlineCorrection, quantile


def lognormal(rng: random.Random, spread: float, outliers: float) -> Iterator[float]:
    """Ratios around 1.3; some of them five times larger."""
    while True:
        yield rng.lognormvariate(math.log(1.3), spread) * (5.0 if rng.random() < outliers else 1.0)


def covered(correction: OnlineCorrection, ratios: Iterator[float], count: int, scale: float = 1.0) -> float:
    """Share of ``count`` steps within the 90th percentile as it was before each."""
    hits = 0
    for _ in range(count):
        ratio = scale * next(ratios)
        hits += ratio <= correction.upper("decode")
        correction.observe("decode", 0.01, 0.01 * ratio)
    return hits / count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("outliers", [0.0, 0.05])
@pytest.mark.parametrize("spread", [0.03, 0.1, 0.3])
def test_ninety_percent_are_covered(spread: float, outliers: float, seed: int) -> None:
    correction, ratios = OnlineCorrection(), lognormal(random.Random(seed), spread, outliers)
    covered(correction, ratios, 50)
    assert 0.87 <= covered(correction, ratios, 2000) <= 0.93
    assert correction.median("decode") == pytest.approx(1.3, rel=spread)


@pytest.mark.parametrize("scale", [2.0, 0.5, 6.0])
@pytest.mark.parametrize("spread", [0.03, 0.1, 0.2])
def test_a_sudden_change_of_speed_is_followed_within_fifty_steps(spread: float, scale: float) -> None:
    shares = []
    for seed in range(20):
        correction, ratios = OnlineCorrection(), lognormal(random.Random(seed), spread, 0.02)
        covered(correction, ratios, 500)
        covered(correction, ratios, 50, scale)
        assert correction.median("decode") == pytest.approx(1.3 * scale, rel=2 * spread)
        shares.append(covered(correction, ratios, 200, scale))
    assert 0.85 <= sum(shares) / len(shares) <= 0.95


def test_a_constant_shift_is_followed_in_nine_steps() -> None:
    correction = OnlineCorrection()
    for _ in range(200):
        correction.observe("mixed", 1.0, 1.0)
    for _ in range(9):
        correction.observe("mixed", 1.0, 2.0)
    assert correction.median("mixed") == correction.upper("mixed") == 2.0


def test_single_outliers_leave_the_median_where_it_is() -> None:
    correction, rng = OnlineCorrection(), random.Random(4)
    for step in range(300):
        correction.observe("decode", 1.0, 50.0 if step % 17 == 3 else rng.uniform(0.95, 1.05))
        if step > 20:
            assert 0.97 < correction.median("decode") < 1.04


def test_before_anything_is_known_predictions_stand_as_they_are_with_a_margin() -> None:
    correction = OnlineCorrection()
    assert correction.median("decode") == 1.0 < correction.upper("decode") < 1.5
    assert math.isnan(correction.error("decode"))
    assert math.isnan(correction.coverage("decode"))


def test_the_first_steps_count_at_once() -> None:
    correction = OnlineCorrection()
    correction.observe("decode", 1.0, 20.0)
    assert correction.median("decode") == pytest.approx(20.0)
    for _ in range(2):
        correction.observe("decode", 1.0, 3.0)
    assert correction.median("decode") == pytest.approx(3.0, rel=0.1)


def test_kinds_are_apart() -> None:
    correction = OnlineCorrection()
    for _ in range(30):
        correction.observe("decode", 1.0, 4.0)
    assert correction.median("decode") == pytest.approx(4.0)
    assert correction.median("mixed") == 1.0
    assert math.isnan(correction.coverage("mixed"))


def test_error_and_coverage_are_those_of_the_predictions_made() -> None:
    correction, rng = OnlineCorrection(), random.Random(2)
    errors, hits = [], []
    for _ in range(WINDOW + 70):
        ratio = rng.uniform(0.8, 1.4)
        errors.append(abs(ratio / correction.next_median("decode") - 1.0))
        hits.append(ratio <= correction.next_upper("decode"))
        correction.observe("decode", 2.0, 2.0 * ratio)
    assert correction.error("decode") == pytest.approx(sorted(errors[-WINDOW:])[WINDOW // 2])
    assert correction.coverage("decode") == sum(hits[-WINDOW:]) / WINDOW


def errors_of(persistence: float, seed: int) -> tuple[float, float, float]:
    """Median errors of the next step by ``next_median`` and by ``median``, and the share within ``next_upper``, on a
    machine whose steps are off by so much of what the one before was off, and by something of their own."""
    correction, rng = OnlineCorrection(), random.Random(seed)
    off, mine, plain, hits = 0.0, [], [], []
    for number in range(1200):
        off = persistence * off + math.sqrt(1.0 - persistence**2) * rng.gauss(0.0, 0.2)
        kind, ratio = rng.choice(("decode", "mixed")), math.exp(off)
        if number >= 200:
            mine.append(abs(ratio / correction.next_median(kind) - 1.0))
            plain.append(abs(ratio / correction.median(kind) - 1.0))
            hits.append(ratio <= correction.next_upper(kind))
        correction.observe(kind, 1.0, ratio)
    return statistics.median(mine), statistics.median(plain), statistics.mean(hits)


@pytest.mark.parametrize("seed", range(3))
def test_what_lasts_for_a_few_steps_is_carried_over_to_the_next_of_either_kind(seed: int) -> None:
    mine, plain, covered = errors_of(0.9, seed)
    assert mine < 0.75 * plain
    assert 0.85 <= covered <= 0.97


@pytest.mark.parametrize("seed", range(3))
def test_what_lasts_for_one_step_only_is_not(seed: int) -> None:
    mine, plain, covered = errors_of(0.0, seed)
    assert mine < 1.08 * plain
    assert 0.85 <= covered <= 0.95


def test_a_pause_says_little_of_the_next_step() -> None:
    correction = OnlineCorrection()
    for number in range(200):
        correction.observe("decode", 1.0, 1.2 if number // 10 % 2 else 1.0)
    before = correction.next_median("decode")
    correction.observe("decode", 1.0, 50.0)
    assert before < correction.next_median("decode") < before * math.exp(NEWEST * 2 * MOST_OFF)


@pytest.mark.parametrize(("raw_s", "actual_s"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_what_has_no_ratio_teaches_nothing(raw_s: float, actual_s: float) -> None:
    correction = OnlineCorrection()
    correction.observe("decode", raw_s, actual_s)
    assert correction.median("decode") == 1.0


ratios_of_any_size = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=300)


@given(ratios_of_any_size)
def test_the_estimates_are_ordered_and_within_what_was_seen(ratios: list[float]) -> None:
    correction = OnlineCorrection()
    for ratio in ratios:
        correction.observe("decode", 1.0, ratio)
        assert 0.0 < correction.median("decode") <= correction.upper("decode") < math.inf
        assert 0.0 <= correction.coverage("decode") <= 1.0
        assert correction.error("decode") >= 0.0


@given(ratios_of_any_size, st.floats(0.01, 100.0))
def test_the_unit_of_predictions_does_not_matter(ratios: list[float], unit: float) -> None:
    one, other = OnlineCorrection(), OnlineCorrection()
    for ratio in ratios:
        one.observe("decode", 1.0, ratio)
        other.observe("decode", unit, ratio)
    read: Callable[[OnlineCorrection], list[float]] = lambda c: [c.median("decode"), c.upper("decode")]  # noqa: E731
    assert read(one) == pytest.approx([unit * each for each in read(other)], rel=1e-6)


def test_the_next_value_stays_below_a_quantile_with_its_probability() -> None:
    rng, below = random.Random(0), 0
    for _ in range(4000):
        seen = sorted(rng.random() for _ in range(19))
        below += rng.random() <= quantile(seen, 0.9)
    assert below / 4000 == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("spread", [0.1, 0.3])
@pytest.mark.parametrize("num_steps", [1, 4, 100])
def test_many_steps_together_deviate_less_than_one(spread: float, num_steps: int) -> None:
    correction, ratios = OnlineCorrection(), lognormal(random.Random(1), spread, 0.0)
    within = []
    for _ in range(400):
        covered(correction, ratios, 1)
        taken_s = sum(0.01 * next(ratios) for _ in range(num_steps))
        within.append(taken_s <= correction.overall.seconds(0.01 * num_steps, 0.01))
    assert 0.75 <= sum(within[50:]) / 350 <= 0.97
    assert correction.overall.seconds(1e-9, 0.01) == pytest.approx(1e-9 * correction.overall.upper)


def test_kinds_count_by_the_time_spent_on_them_lately() -> None:
    correction = OnlineCorrection()
    for _ in range(200):
        correction.observe("mixed", 1.0, 1.0)
    for _ in range(200):
        correction.observe("decode", 0.01, 0.05)
        correction.observe("mixed", 1.0, 2.0)
    assert correction.overall.mean == pytest.approx(2.0, rel=0.03)
    for _ in range(400):
        correction.observe("decode", 0.01, 0.05)
    assert correction.overall.mean == pytest.approx(5.0, rel=0.01)


def test_a_pause_is_not_the_pace() -> None:
    correction = OnlineCorrection()
    for _ in range(200):
        correction.observe("mixed", 1.0, 1.0)
    correction.observe("mixed", 1.0, 50.0)
    assert 1.0 < correction.overall.mean < 1.15
    for _ in range(20):
        correction.observe("mixed", 1.0, 1.0)
    assert correction.overall.mean == pytest.approx(1.0, rel=0.02)


def test_the_pace_is_that_of_the_last_few_steps() -> None:
    correction, rng, pace = OnlineCorrection(), random.Random(0), 0.0
    errors: dict[str, list[float]] = {"last few": [], "window": []}
    for _ in range(2000):
        pace = 0.95 * pace + rng.gauss(0.0, 0.06)  # of the machine, as a logarithm: wanders by 0.2
        for name, foretold in (("last few", correction.overall.mean), ("window", correction.mean("mixed"))):
            errors[name].append(abs(math.log(foretold) - pace))
        correction.observe("mixed", 0.01, 0.01 * math.exp(pace + rng.gauss(0.0, 0.1)))
    assert sum(errors["last few"]) < 0.7 * sum(errors["window"])
