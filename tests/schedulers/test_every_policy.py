"""What holds for every plan of every policy, with a cost model and without."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.schedulers.expiry import drop_reason
from stepwell.schedulers.plan import DropReason, Limits
from stepwell.schedulers.registry import POLICIES, create_policy
from stepwell.schedulers.request import Phase

NAMES = [*sorted(POLICIES), "fixed:min", "fixed:depth:1"]
NOW = 2.0


def state(request):
    return [getattr(request, name) for name in request.__slots__]


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_invariants_of_every_plan(make, name: str, with_model: bool, data) -> None:
    situation = data.draw(make.situations())
    waiting, running = ([make.request(**each) for each in situation[group]] for group in ("waiting", "running"))
    limits = Limits(**situation["limits"])
    policy, capacity = create_policy(name, limits), make.capacity(situation["free_pages"])
    model = make.model() if with_model else None
    before = [state(r) for r in (*waiting, *running)]
    result = policy.plan(NOW, waiting, running, capacity, model)
    assert before == [state(r) for r in (*waiting, *running)], "a policy writes nothing"
    again = create_policy(name, limits).plan(NOW, waiting, running, capacity, model)
    assert (list(again.slices), list(again.drops)) == (list(result.slices), list(result.drops)), "a pure function"

    planned, dropped = [s.request for s in result.slices], {d.request: d.reason for d in result.drops}
    expired = {r for r in (*running, *waiting) if drop_reason(r, NOW) is not None}
    assert expired == {r for r, why in dropped.items() if why is not DropReason.HOPELESS}
    assert all(not r.has_started for r, why in dropped.items() if why is DropReason.HOPELESS)
    assert not dropped.keys() & {*planned}
    assert max(Counter(planned).values(), default=1) == 1
    assert all(1 <= s.num_tokens <= s.request.pending_tokens for s in result.slices)
    assert result.num_tokens <= limits.max_step_tokens
    live = [r for r in (*running, *waiting) if r not in dropped]
    if name != "clockwork":  # which rather waits
        assert planned or not live, "work is never left lying"

    for slice_ in result.slices:
        request = slice_.request
        assert slice_.point in request.points
        if request.point is not None and not request.may_switch:
            assert slice_.point is request.point

    admitted = [s for s in result.slices if s.request.phase is Phase.WAITING]
    still_running = [r for r in running if r not in dropped]
    assert len(still_running) + len(admitted) <= limits.max_running
    if still_running or len(admitted) > 1:
        needed = sum(capacity.pages_for(s.point, s.request.known_tokens) for s in admitted)
        assert needed <= situation["free_pages"]
    if with_model:
        assert result.predicted_s is not None or not planned


@pytest.mark.parametrize("name", ["fixed", "fixed:min", "max_quality", "max_throughput"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_goes_by_due_times_lets_nobody_overtake(make, name: str, data) -> None:
    situation = data.draw(make.situations())
    waiting, running = ([make.request(**each) for each in situation[group]] for group in ("waiting", "running"))
    limits = Limits(**situation["limits"])
    result = create_policy(name, limits).plan(NOW, waiting, running, make.capacity(situation["free_pages"]), None)
    planned = [s.request for s in result.slices]
    assert [r.urgency_s for r in planned] == sorted(r.urgency_s for r in planned)
    live = [r for r in waiting if drop_reason(r, NOW) is None]
    admitted = [r for r in planned if r.phase is Phase.WAITING]
    assert [r.rank_s for r in admitted] == sorted(r.rank_s for r in live)[: len(admitted)], "in order, no gaps"
    decoding = [r for r in running if drop_reason(r, NOW) is None and r.pending_tokens == 1]
    assert sum(r in planned for r in decoding) == min(len(decoding), limits.max_step_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_clockwork_of_requests_ends(make, name: str) -> None:
    """Played step by step, every request ends, served or dropped."""
    limits = Limits(max_step_tokens=16, max_running=3)
    policy, model = create_policy(name, limits), make.model()
    slos = [
        {"ttft_s": 0.5, "tpot_s": 0.1},
        {"deadline_s": 1.0},
        {},
        {"tpot_s": 0.2},
        {"ttft_s": 2.0, "min_quality": 0.5},
    ]
    waiting = [make.request(prompt_tokens=9, may_switch=True, arrival_s=0.01 * i, **slos[i % 5]) for i in range(25)]
    running, now = [], 0.3
    for _ in range(2000):
        result = policy.plan(now, waiting, running, make.capacity(), model)
        gone = {d.request for d in result.drops}
        now += model.predict_s(result.slices) if result.slices else 0.05
        for request, num_tokens, point in result.slices:
            if request.phase is Phase.WAITING:
                request.phase, request.started_s = Phase.RUNNING, now
                running.append(request)
            request.point = point
            request.computed_tokens += num_tokens
            if request.computed_tokens == request.known_tokens:
                request.first_token_s = now if math.isnan(request.first_token_s) else request.first_token_s
                request.known_tokens += 1
                request.generated_tokens += 1
        gone |= {r for r in running if r.generated_tokens == r.max_tokens}
        running = [r for r in running if r not in gone]
        waiting = [r for r in waiting if r not in gone and r not in running]
    assert not waiting
    assert not running
