"""Fitting what surrounds a server's steps, on steps whose surroundings are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.serving.replay.surroundings import Surroundings, fit_steps

Kinds = list[tuple[float, int]]
KINDS = st.lists(st.tuples(st.floats(0.001, 0.5), st.integers(1, 500)), min_size=3, max_size=8).filter(
    lambda kinds: max(raw_s for raw_s, _ in kinds) > 1.5 * min(raw_s for raw_s, _ in kinds)
)


@given(kinds=KINDS, slowness=st.floats(0.5, 3.0), step_s=st.floats(0.0001, 0.05))
def test_surroundings_are_found_again(kinds: Kinds, slowness: float, step_s: float) -> None:
    true = Surroundings(slowness, step_s)
    found = fit_steps([(raw_s, true.seconds(raw_s), number) for raw_s, number in kinds])
    assert found == pytest.approx((slowness, step_s), rel=1e-6, abs=1e-9)


@given(kinds=KINDS, slowness=st.floats(1.0, 3.0), saved=st.floats(0.1, 0.9))
def test_where_a_step_would_take_less_than_nothing_slowness_alone_is_fitted(
    kinds: Kinds, slowness: float, saved: float
) -> None:
    step_s = -saved * min(raw_s for raw_s, _ in kinds)
    steps = [(raw_s, slowness * raw_s + step_s, number) for raw_s, number in kinds]
    found, nothing = fit_steps(steps)
    assert nothing == 0.0
    # The best line through the origin: its weighted residuals are orthogonal to what it is fitted to.
    assert sum(n * raw_s * (actual_s - found * raw_s) for raw_s, actual_s, n in steps) == pytest.approx(0.0, abs=1e-9)
    assert found < slowness


def test_kinds_with_more_steps_are_met_more_closely() -> None:
    fits = [fit_steps([(0.1, 0.2, number), (0.2, 0.3, 10), (0.3, 0.35, 10)]) for number in (1, 100, 10_000)]
    misses = [abs(Surroundings(*fit).seconds(0.1) - 0.2) for fit in fits]
    assert misses == sorted(misses, reverse=True)
    assert misses[-1] < 1e-4 < misses[0]
