"""Where consecutive pages can be had, against trying every window."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.cache.runs import cheapest_window, first_run

PAGES = st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=40)


@given(PAGES, st.integers(1, 12))
def test_the_first_of_the_cheapest_windows(pages: list[tuple[bool, int]], length: int) -> None:
    windows = [pages[start : start + length] for start in range(len(pages) - length + 1)]
    costs = {start: sum(cost for _, cost in w) for start, w in enumerate(windows) if all(usable for usable, _ in w)}
    usable, cost = np.array([u for u, _ in pages]), np.array([c for _, c in pages])
    expected = min(costs, key=costs.__getitem__, default=None)
    assert cheapest_window(usable, cost, length) == expected
    free = first_run(usable & (cost == 0), length)
    assert free == (expected if expected is not None and costs[expected] == 0 else None)
