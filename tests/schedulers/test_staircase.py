"""The staircase policy: what lowers a level, what raises it, and how long a step may be.

A row takes 4, 2 and 1 ms at levels 2, 1 and 0, a step 1 ms besides.
"""

from __future__ import annotations

import pytest

from stepwell.schedulers.cost_model import LadderCosts, StepCostModel
from stepwell.schedulers.fill import GUARD, STEP_S
from stepwell.schedulers.max_quality import MaxQuality
from stepwell.schedulers.plan import Capacity, DropReason, Limits
from stepwell.schedulers.request import OperatingPoint
from stepwell.schedulers.staircase import Staircase

POINTS = tuple(OperatingPoint(c, q, "depth", k) for k, (c, q) in enumerate([(0.25, 0.6), (0.5, 0.85), (1.0, 1.0)]))
CAPACITY = Capacity(10_000, 10_000, 4, {point.name: 1 for point in POINTS})


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch) -> None:
    """The numbers below are worked out with these."""
    monkeypatch.setattr("stepwell.schedulers.staircase.CALM_SHARE", 0.6)
    monkeypatch.setattr("stepwell.schedulers.staircase.BUSY_SHARE", 0.6)
    monkeypatch.setattr("stepwell.schedulers.pace.RESERVE_S", 0.01)


@pytest.fixture
def request_of(make):
    return lambda **kwargs: make.request(**{"points": POINTS, "may_switch": True, "max_tokens": 1, **kwargs})


@pytest.fixture
def decoding_of(make):
    return lambda **kwargs: make.decoding(**{"points": POINTS, "may_switch": True, "max_tokens": 9, **kwargs})


@pytest.fixture
def plan(make):
    exact = make.model(POINTS)

    def plan(waiting=(), running=(), *, now=0.0, model=exact, **limits):
        return Staircase(Limits(**limits)).plan(now, list(waiting), list(running), CAPACITY, model)

    return plan


def levels(result) -> dict:
    return {s.request: s.point.level for s in result.slices}


@pytest.mark.parametrize(("ttft_s", "level"), [(10.0, 2), (0.1, 2), (0.06, 1), (0.04, 0)])
def test_a_deadline_lowers_the_level_and_slack_raises_it(plan, request_of, ttft_s: float, level: int) -> None:
    request = request_of(ttft_s=ttft_s)
    assert levels(plan([request])) == {request: level}


@pytest.mark.parametrize(("num_more", "level"), [(0, 2), (3, 1), (5, 0)])
def test_a_queue_lowers_the_level(plan, request_of, num_more: int, level: int) -> None:
    first = request_of(ttft_s=0.1)
    others = [request_of(ttft_s=0.1, arrival_s=1e-6) for _ in range(num_more)]
    assert levels(plan([first, *others]))[first] == level


def test_more_is_kept_back_in_a_busy_house(plan, request_of, monkeypatch) -> None:
    """Those who have all the time of the world need none of it now, but where they are others may come."""
    request = request_of(ttft_s=0.1)
    patient = [request_of(ttft_s=1e6, tpot_s=1.0) for _ in range(8)]
    assert levels(plan([request, *patient], max_running=32))[request] == 2
    monkeypatch.setattr("stepwell.schedulers.staircase.BUSY_SHARE", 0.2)
    assert levels(plan([request], max_running=32))[request] == 2
    assert levels(plan([request, *patient], max_running=32))[request] < 2


def test_a_quality_floor_is_kept(plan, request_of) -> None:
    floored, free = request_of(ttft_s=0.04, points=POINTS[1:]), request_of(ttft_s=0.04)
    assert levels(plan([floored])) == {floored: 1}
    assert levels(plan([free])) == {free: 0}


def test_a_pinned_point_is_kept_and_paid_for_by_others(plan, request_of) -> None:
    pinned, free = request_of(ttft_s=0.1, points=POINTS[2:], may_switch=False), request_of(ttft_s=0.1)
    served = levels(plan([pinned, free]))
    assert served[pinned] == 2
    assert served.get(free, 0) < 2
    assert levels(plan([free])) == {free: 2}


def test_who_may_not_switch_stays(plan, decoding_of) -> None:
    low = decoding_of(may_switch=False, point=POINTS[0])
    high = decoding_of(may_switch=False, point=POINTS[2], ttft_s=0.001, tpot_s=0.001)
    assert levels(plan(running=[low, high], now=0.001)) == {low: 0, high: 2}


def test_without_an_slo_everybody_runs_at_full_quality(plan, request_of, decoding_of) -> None:
    waiting, running = [request_of(prompt_tokens=3) for _ in range(2)], [decoding_of(point=POINTS[0])]
    assert {*levels(plan(waiting, running)).values()} == {2}


def test_best_effort_does_not_lower_the_others(plan, request_of) -> None:
    urgent, idle = request_of(ttft_s=0.1), [request_of(prompt_tokens=100, max_tokens=100) for _ in range(50)]
    result = plan([*idle, urgent])
    assert result.slices[0].request is urgent
    assert result.slices[0].point.level == 2


def test_short_requests_climb_before_long_ones(plan, request_of) -> None:
    long, short = request_of(prompt_tokens=7, ttft_s=0.07), request_of(prompt_tokens=2, ttft_s=0.07)
    assert levels(plan([long, short])) == {long: 1, short: 2}, "32 ms, of which level 1 takes 18 and level 2 36"


def test_what_is_read_for_one_is_nearly_free_for_the_next(make, plan, decoding_of) -> None:
    flat = tuple([0.0] + [0.010] * 300)
    costs = LadderCosts(tuple(p.name for p in POINTS), (flat,) * 3, (None,) * 3, (0.0,) * 3, (0.0,) * 3, (0.0,) * 3)
    model = StepCostModel(0.001, (0.0, 0.0), {"depth": costs}, make.model().correction)
    model.answer_way.seconds = 0.0
    for num in (1, 8):
        running = [decoding_of(ttft_s=0.1, tpot_s=0.1, max_tokens=2, point=POINTS[0]) for _ in range(num)]
        assert {*levels(plan(running=running, now=0.1, model=model)).values()} == {2}, "eight cost what one costs"


def test_a_step_ends_before_the_next_token_is_due(make, plan, request_of, decoding_of) -> None:
    fast, long = make.model(POINTS, row_s=0.0004), request_of(prompt_tokens=500, ttft_s=9.0)
    near = decoding_of(ttft_s=0.01, tpot_s=0.01)  # due at 20 ms
    result = plan([long], [near], model=fast)
    assert len(result.slices) == 2
    assert 0.8 * 0.02 * GUARD < result.predicted_s <= 0.02 * GUARD
    assert 0.8 * STEP_S < plan([long], model=fast).predicted_s <= STEP_S
    late = plan([long], [near], model=fast, now=0.5)
    assert 0.8 * STEP_S < late.predicted_s <= STEP_S, "what is late already shortens no step"


def test_on_a_slow_machine_a_step_still_holds_everybody_and_a_piece_of_a_prompt(
    make, plan, request_of, decoding_of
) -> None:
    slow, prompt = make.model(POINTS, row_s=0.1), request_of(prompt_tokens=500)
    result = plan([prompt], [decoding_of() for _ in range(8)], model=slow)
    assert len(result.slices) == 9
    assert {*levels(result).values()} == {2}


def test_credit_lets_an_urgent_prompt_go_first(make, plan, request_of, decoding_of) -> None:
    fast, urgent = make.model(POINTS, row_s=0.0004), request_of(prompt_tokens=200, ttft_s=0.16)
    ahead = [decoding_of(ttft_s=5.0, tpot_s=1.0) for _ in range(30)]
    served = plan([urgent], ahead, model=fast)
    assert served.slices[0].request is urgent
    assert len(served.slices) < 10
    assert len(plan(running=ahead, model=fast).slices) == 30
    due = [decoding_of(ttft_s=0.02, tpot_s=0.02) for _ in range(3)]
    assert {s.request for s in plan([urgent], due, model=fast).slices} >= {*due}, "who has none must advance"


def test_a_long_prompt_advances_in_chunks(plan, request_of) -> None:
    (slice_,) = plan([request_of(prompt_tokens=500, ttft_s=60.0)]).slices
    assert 0 < slice_.num_tokens <= STEP_S / 0.001


def test_climbing_must_be_worth_its_backfill(make, plan, decoding_of) -> None:
    fast = make.model(POINTS, row_s=0.0004)
    few = decoding_of(point=POINTS[0], exit_tokens={POINTS[0]: 40}, prompt_tokens=40)
    many = decoding_of(point=POINTS[0], exit_tokens={POINTS[0]: 600}, prompt_tokens=600)
    assert levels(plan(running=[few], model=fast)) == {few: 2}
    assert levels(plan(running=[many], model=fast)) == {many: 0}, "60 ms at once are too long"
    neighbour = decoding_of(ttft_s=0.005, tpot_s=0.005)  # due at 10 ms: no time for 12 ms of backfill
    assert levels(plan(running=[few, neighbour], model=fast))[few] < 2


def test_a_full_house_hurries_those_with_least_to_do(plan, request_of, decoding_of) -> None:
    nearly, far = decoding_of(max_tokens=2, tpot_s=5.0, ttft_s=5.0), decoding_of(max_tokens=50, tpot_s=5.0, ttft_s=5.0)
    urgent = request_of(ttft_s=0.3)
    assert plan([urgent], [far, nearly], max_running=2).slices[0].request is nearly
    assert {*levels(plan([], [far, nearly], max_running=2)).values()} == {2}
    crowd = [request_of(ttft_s=0.05) for _ in range(2)]
    assert min(levels(plan(crowd, [far, nearly], max_running=2)).values()) < 2


def test_what_can_no_longer_be_in_time_is_dropped_unless_it_has_started(plan, request_of) -> None:
    lost, put_back, fine = request_of(ttft_s=0.004), request_of(ttft_s=0.004), request_of(ttft_s=1.0)
    put_back.started_s = 0.0
    result = plan([lost, put_back, fine])
    assert [(d.request, d.reason) for d in result.drops] == [(lost, DropReason.HOPELESS)]
    assert result.drops[0].retry_after_s is not None, "it was possible when it came"
    assert {*levels(result)} == {put_back, fine}


def test_an_end_to_end_deadline_counts_all_tokens(plan, request_of) -> None:
    short, long = (request_of(deadline_s=0.5, max_tokens=n) for n in (2, 100))
    assert levels(plan([short])) == {short: 2}
    assert levels(plan([long])) == {long: 0}


def test_without_a_cost_model_it_is_max_quality(plan, request_of, decoding_of) -> None:
    waiting, running = [request_of(ttft_s=0.001)], [decoding_of()]
    mine = plan(waiting, running, model=None)
    assert list(mine.slices) == list(MaxQuality(Limits()).plan(0.0, waiting, running, CAPACITY, None).slices)
    assert Staircase(Limits()).admission(0.0, waiting, running, None) is None


def test_a_slow_machine_lowers_the_level(make, plan, request_of) -> None:
    request, slow = request_of(ttft_s=0.1), make.model(POINTS, slowness=2.0)
    result = plan([request], model=slow)
    assert levels(result)[request] < 2
    assert result.predicted_s == 2.0 * slow.raw_s(result.slices)


def test_what_is_still_to_travel_is_made_earlier(make, plan, request_of) -> None:
    near, model = request_of(prompt_tokens=4, ttft_s=0.05), make.model(POINTS)
    assert levels(plan([near], model=model)) == {near: 2}
    model.answer_way.observe([0.01] * 8)  # the client has 4 ms to itself besides
    assert levels(plan([near], model=model)) == {near: 1}
