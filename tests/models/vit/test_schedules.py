"""Budgets: never exceeded, met closely, and worth more tokens the larger they are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers import TRAINING_FREE
from stepwell.models.vit.reducers.base import Reducer, build_reducers, mean_share

VIT_S = ViTConfig(384, 12, 6, 1536, (224, 224), 16)
REDUCERS = build_reducers(VIT_S)
BUDGETS = st.floats(0.01, 1.0)
GRIDS = st.builds(Grid, st.integers(1, 20), st.integers(1, 20), st.integers(0, 2))


def reducer(name: str) -> Reducer:
    found = REDUCERS[name]
    assert isinstance(found, Reducer)
    return found


@pytest.mark.parametrize("name", TRAINING_FREE)
@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, num_layers=st.integers(1, 24), budgets=st.tuples(BUDGETS, BUDGETS))
def test_schedules_keep_to_the_budget_and_grow_with_it(
    name: str, grid: Grid, num_layers: int, budgets: tuple[float, float]
) -> None:
    small, large = (reducer(name).schedule(grid, num_layers, budget) for budget in sorted(budgets))
    least = reducer(name).schedule(grid, num_layers, 1e-9)
    assert len(small) == len(large) == num_layers
    assert all(0 < count <= grid.num_tokens for layer in (*small, *large) for count in layer)
    assert mean_share(small, grid.num_tokens) <= mean_share(large, grid.num_tokens)
    assert mean_share(small, grid.num_tokens) <= min(budgets) + 1e-9 or small == least


@pytest.mark.parametrize(("name", "tolerance"), [("merge", 0.01), ("cluster", 0.04), ("super", 0.01)])
@settings(max_examples=60, deadline=None)
@given(budget=st.floats(0.15, 0.99), num_layers=st.integers(6, 24))
def test_the_mean_share_is_close_below_the_budget(name: str, tolerance: float, budget: float, num_layers: int) -> None:
    grid = VIT_S.base_grid
    share, least = (mean_share(reducer(name).schedule(grid, num_layers, b), grid.num_tokens) for b in (budget, 1e-9))
    # The first layer's attention sees all tokens before any is merged, and a layer merges at most half.
    assert max(budget, least) - tolerance <= share <= max(budget, least) + 1e-9
    assert least < 2 / num_layers
