"""What calls take from steps is told apart from the pace of the machine, and planned with."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.correction import OnlineCorrection
from stepwell.schedulers.plan import Limits, Slice
from stepwell.schedulers.staircase import Staircase
from stepwell.schedulers.toll import HORIZON_S, MOST_S, Toll

STEP_S, RATE = 0.02, 200.0


def serve(toll: Toll, true_s: float, num_steps: int, *, slow_share: float = 0.0, seed: int = 0) -> None:
    """Steps one after the other; each call that comes in one takes ``true_s`` of it. Their own time varies a little,
    and ``slow_share`` of them take three times as long."""
    rng, now = random.Random(seed), 1000.0
    next_s = now
    for _ in range(num_steps):
        begin_s, own_s = now, STEP_S * rng.lognormvariate(0.0, 0.1) * (3.0 if rng.random() < slow_share else 1.0)
        now += own_s
        while next_s < now:
            toll.calls_came(next_s)
            now += true_s
            next_s += rng.expovariate(RATE)
        toll.learn(begin_s, STEP_S * (1.0 + 2.0 * slow_share), now - begin_s)


@pytest.mark.parametrize("true_s", [0.0, 0.0005, 0.002])
def test_what_a_call_takes_is_found(true_s: float) -> None:
    toll = Toll()
    serve(toll, true_s, 400)
    assert toll.call_s == pytest.approx(true_s, rel=0.2, abs=0.0003)


def test_a_step_that_is_slow_for_another_reason_is_not_put_down_to_the_calls_that_came_in_it() -> None:
    toll = Toll()
    serve(toll, 0.0, 400, slow_share=0.1)
    assert toll.call_s < 0.0004  # judged by all that came in them it would be three times that


def test_what_has_changed_is_learned_anew() -> None:
    toll = Toll()
    serve(toll, 0.002, 300)
    serve(toll, 0.0, 600, seed=1)
    assert toll.call_s < 0.0005


def test_nothing_is_learned_from_steps_without_calls_or_beyond_what_calls_can_take() -> None:
    toll = Toll()
    toll.learn(0.0, 0.01, 5.0)
    assert toll.call_s == 0.0
    for number in range(300):
        toll.calls_came(number + 0.005)
        toll.learn(number, 0.01, 0.9)
    assert 0.8 * MOST_S < toll.call_s <= MOST_S


def known(times_s: Sequence[float], call_s: float = 0.001) -> Toll:
    toll = Toll()
    toll.call_s = call_s
    for time_s in times_s:
        toll.calls_came(time_s)
    return toll


def test_as_many_are_expected_as_came_in_the_same_time_before() -> None:
    toll = known([97.0, 99.0, 99.8, 99.9])
    assert [toll.lost_s(100.0, until_s) for until_s in (100.05, 100.15, 100.5, 101.5, 104.0)] == pytest.approx(
        [0.0, 0.001, 0.002, 0.003, 0.004]
    )
    assert toll.lost_s(100.0, math.inf) == toll.lost_s(100.0, 99.0) == 0.0
    assert toll.lost_s(100.0, 100.0 + 3 * HORIZON_S) == pytest.approx(3 * 0.004)  # beyond, at their mean rate
    assert known([97.0], call_s=0.0).lost_s(100.0, 104.0) == 0.0


@given(st.lists(st.floats(0.0, 100.0), max_size=30), st.lists(st.floats(99.0, 130.0), min_size=1, max_size=20))
def test_several_instants_are_as_each(times_s: list[float], until_s: list[float]) -> None:
    toll = known(sorted(times_s))
    each = toll.lost_each_s(100.0, np.array(until_s))
    alone = [toll.lost_s(100.0, instant_s) for instant_s in until_s]
    assert (each.tolist() if each is not None else [0.0] * len(alone)) == alone


def test_only_the_recent_ones_are_remembered() -> None:
    toll = known([number / 100.0 for number in range(20_000)])
    assert len(toll._times) <= 2 * HORIZON_S * 100 + 2
    assert toll.lost_s(200.0, 200.0 + HORIZON_S) == pytest.approx(HORIZON_S * 100 * 0.001, rel=0.01)


def test_the_pace_is_learned_from_what_calls_leave_of_a_step(make) -> None:
    model, request = make.model(), make.decoding(max_tokens=100)
    model.correction = OnlineCorrection()
    slices = [Slice(request, 1, request.points[-1])]
    own_s, now = model.raw_s(slices), 0.0
    for _ in range(200):
        _, learn = model.foresee(slices, now)
        for _ in range(3):
            model.toll.calls_came(now + own_s / 2)
        learn(own_s + 3 * 0.001)
        now += own_s + 3 * 0.001
    assert own_s == pytest.approx(0.005)
    assert model.correction.median("decode") + 3 * model.toll.call_s / own_s == pytest.approx(1.6, rel=0.01)
    assert model.foresee(slices, now)[0] == pytest.approx(own_s + 0.003, rel=0.05)
    assert model.foresee(slices)[0] == pytest.approx(own_s * model.correction.median("decode"))
    assert model.correction.error("decode") < 0.05


def test_less_is_promised_while_calls_come(make) -> None:
    for call_s, fits in ((0.0, True), (0.002, False)):
        model = make.model(row_s=0.0004)
        model.toll.call_s = call_s
        for number in range(20):
            model.toll.calls_came(-0.09 + number * 0.0045)
        admission = Staircase(Limits()).admission(0.0, [], [make.decoding()], model)
        request = make.request(prompt_tokens=500, max_tokens=1, ttft_s=0.09)
        assert (admission.admit(0.0, request) is None) == fits
        assert admission.admit(0.0, make.request(prompt_tokens=500, max_tokens=1, ttft_s=0.3)) is None


def test_levels_go_down_while_calls_come(make) -> None:
    def level(call_s: float) -> int:
        model, request = make.model(), make.request(prompt_tokens=8, max_tokens=1, ttft_s=0.1, may_switch=True)
        model.toll.call_s = call_s
        for number in range(20):
            model.toll.calls_came(-0.09 + number * 0.0045)
        plan = Staircase(Limits()).plan(0.0, [request], [], make.capacity(), model)
        return plan.slices[0].point.level

    assert level(0.0) > level(0.002)
