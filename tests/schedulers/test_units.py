"""Requests that cannot be computed in pieces smaller than a unit: images and texts that are answered in one step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import POLICIES, create_policy
from stepwell.schedulers.request import Phase

NAMES = [*sorted(POLICIES), "fixed:min"]
MAX_STEP_TOKENS = 64


@st.composite
def one_shots(draw: st.DrawFn) -> list[dict[str, object]]:
    """Some of them half computed."""
    requests = []
    for i in range(draw(st.integers(1, 12))):
        unit, num_units = draw(st.integers(2, MAX_STEP_TOKENS)), draw(st.integers(1, 4))
        requests.append(
            {
                "prompt_tokens": unit * num_units,
                "unit_tokens": unit,
                "max_tokens": 1,
                "deadline_s": draw(st.sampled_from([0.5, 1.0, 3.0, 60.0])),
                "arrival_s": 0.001 * i,
            }
        )
    return requests


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(described=one_shots())
def test_whole_units_run_until_all_is_done(make, name: str, with_model: bool, described) -> None:
    policy = create_policy(name, Limits(MAX_STEP_TOKENS, max_running=4))
    model = make.model() if with_model else None
    waiting, running, now = [make.request(**each) for each in described], [], 0.05
    for _ in range(500):
        plan = policy.plan(now, waiting, running, make.capacity(), model)
        gone = {drop.request for drop in plan.drops}
        assert plan.num_tokens <= MAX_STEP_TOKENS
        assert plan.slices or gone or name == "clockwork" or not (waiting or running), "work is never left lying"
        now += plan.predicted_s or 0.01
        for request, num_tokens, point in plan.slices:
            assert num_tokens % request.unit_tokens == 0
            request.phase, request.point, request.started_s = Phase.RUNNING, point, now
            request.computed_tokens += num_tokens
            if request.computed_tokens == request.prompt_tokens:
                gone.add(request)
        running = [r for r in (*running, *waiting) if r not in gone and r.phase is Phase.RUNNING]
        waiting = [r for r in waiting if r not in gone and r not in running]
        if not (waiting or running):
            return
    raise AssertionError(f"{len(waiting)} wait and {len(running)} run for ever")
