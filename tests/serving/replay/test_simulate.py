"""The engine in virtual time: what it does can be worked out by hand."""

from __future__ import annotations

import math
import random
import threading
from dataclasses import replace

import pytest

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.serving.errors import RequestError
from stepwell.serving.replay.simulate import capacity, simulate
from stepwell.serving.replay.surroundings import Surroundings
from stepwell.serving.replay.virtual import Fault, VirtualClock

# A step at full size takes 10 ms and 1 ms a token (conftest.py).


def test_things_happen_at_their_own_time():
    clock, seen = VirtualClock(), []
    for at_s in (3.0, 1.0, 1.0, 7.0):
        clock.at(at_s, lambda at_s=at_s: seen.append((clock(), at_s)))
    clock.at(1.0, lambda: clock.at(2.0, lambda: seen.append((clock(), 2.0))))
    clock.advance_to(5.0)
    assert seen == [(1.0, 1.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert (clock(), clock.next_s) == (5.0, 7.0)
    clock.advance_to(4.0)
    assert clock() == 5.0


def test_one_request_by_hand(make_setup, make_workload):
    (result,) = simulate(make_workload((0, 20, 3, "tight")), make_setup()).results
    assert result.ttft_s == pytest.approx(0.030)  # 10 ms and 20 tokens
    assert result.total_s == pytest.approx(0.030 + 2 * 0.011)
    assert result.tpot_s == pytest.approx(0.011)
    assert (result.outcome, result.generated_tokens, result.quality) == ("met", 3, 1.0)
    assert result.lateness_ratio == pytest.approx(max(30 / 50, 41 / 70, 52 / 90))


def test_what_arrives_during_a_step_waits_for_its_end(make_setup, make_workload):
    replay = simulate(make_workload((0, 90, 1), (0.05, 30, 1, "tight")), make_setup())
    first, second = replay.results
    assert first.total_s == pytest.approx(0.100)
    assert second.total_s == pytest.approx(0.050 + 0.040)
    assert second.outcome == "missed"
    assert second.lateness_ratio == pytest.approx(0.090 / 0.050)
    assert replay.num_steps == 2
    assert replay.busy_s == pytest.approx(0.140)
    assert replay.duration_s == pytest.approx(0.140)


def test_an_idle_engine_jumps_to_the_next_arrival(make_setup, make_workload):
    replay = simulate(make_workload((0, 10, 1), (3600, 10, 1)), make_setup())
    assert [result.total_s for result in replay.results] == pytest.approx([0.020, 0.020])
    assert replay.duration_s == pytest.approx(3600.020)
    assert replay.num_steps == 2


def test_what_waits_too_long_expires_at_its_deadline(make_setup, make_workload):
    setup = make_setup(max_running=1)
    hog, late = simulate(make_workload((0, 10, 400), (0.5, 10, 1, "relaxed")), setup).results
    assert (hog.outcome, late.outcome) == ("met", "expired")
    assert late.total_s == pytest.approx(2.0, abs=0.012)
    assert late.lateness_ratio is late.ttft_s is None


def test_a_full_queue_sheds_and_everything_is_accounted_for(make_setup, make_workload):
    replay = simulate(make_workload(*[(0, 10, 2)] * 10), make_setup(max_waiting=3))
    outcomes = replay.summary.outcomes
    assert sum(outcomes.values()) == len(replay.results) == 10
    assert outcomes["shed"] == 7
    assert [result.arrival for result in replay.results] == list(range(10))


def test_faults_cost_time_and_requests(make_setup, make_workload):
    faults = {0: Fault(slowdown=3.0), 1: Fault(error=RuntimeError("injected"))}
    setup = make_setup(faults=lambda number, steps: faults.get(number, Fault()))
    first, second = simulate(make_workload((0, 20, 1), (1, 20, 1)), setup).results
    assert first.total_s == pytest.approx(0.090)
    assert (first.outcome, second.outcome) == ("met", "failed")


@pytest.mark.parametrize("policy", ["max_quality", "staircase", "slack_fit", "clockwork"])
def test_a_step_takes_what_pricing_it_anew_says(make_setup, make_workload, monkeypatch, policy):
    """With prefixes that are found again, requests that are put back, and steps that fail and run again in halves."""
    steps = []

    def checked(model, slices, foreseen_s=StepCostModel.foreseen_s):
        steps.append((foreseen_s(model, slices), StepCostModel.raw_s(model, slices)))
        return steps[-1][0]

    monkeypatch.setattr(StepCostModel, "foreseen_s", checked)
    rng = random.Random(3)
    workload = make_workload(*[(i * 0.02, rng.randint(10, 60), rng.randint(1, 30)) for i in range(60)])
    shared = tuple(replace(a, prefix=(rng.randint(0, 2),)) for a in workload.arrivals)
    setup = make_setup(
        policy, num_pages=120, faults=lambda n, _: Fault(error=ValueError("x") if n % 50 == 49 else None)
    )
    simulate(replace(workload, arrivals=shared, prefix_block_tokens=20), setup)
    assert len(steps) > 60
    assert all(seconds == anew for seconds, anew in steps)


def test_noise_is_seeded_and_its_median_is_one(make_setup, make_workload):
    workload = make_workload(*[(i, 20, 1) for i in range(400)])
    once, again, other = (simulate(workload, make_setup(noise=0.2, seed=seed)) for seed in (1, 1, 2))
    assert once == again != other
    totals = sorted(result.total_s for result in once.results)
    assert totals[200] == pytest.approx(0.030, rel=0.05)
    assert math.log(totals[336] / totals[64]) == pytest.approx(2 * 0.2, rel=0.2)  # one sigma either side


def test_capacity_is_how_fast_a_backlog_is_worked_off(make_setup, make_workload):
    # 40 sequences at a time decode at 10 ms + 40 ms a step: 800 tokens/s, and 10 + 1 computed tokens a request.
    workload = make_workload(*[(random.random(), 1, 11, "tight") for _ in range(800)])
    assert capacity(workload, make_setup(max_running=40)) == pytest.approx(800 / 11, rel=0.05)
    assert capacity(workload, make_setup(max_running=40, replicas=3)) == pytest.approx(3 * 800 / 11, rel=0.05)


@pytest.mark.parametrize("routing", ["least-loaded", "round-robin"])
def test_replicas_share_the_load_and_overlap_in_time(make_setup, make_workload, routing):
    workload = make_workload(*[(0, 90, 5)] * 4)
    replay = simulate(workload, make_setup(replicas=4, routing=routing))
    assert [result.total_s for result in replay.results] == pytest.approx([0.100 + 4 * 0.011] * 4)
    assert replay.busy_s == pytest.approx(4 * 0.144)


def test_least_loaded_avoids_the_replica_that_is_busy(make_setup, make_workload):
    workload = make_workload((0, 10, 100), (0.05, 10, 1), (0.1, 10, 1), (0.15, 10, 1))
    spread = [simulate(workload, make_setup(replicas=2, routing=routing)).results for routing in
              ("least-loaded", "round-robin")]  # fmt: skip
    assert [result.total_s for result in spread[0]][1:] == pytest.approx([0.020] * 3)
    assert spread[1][2].total_s > 0.021  # behind the long one


def test_one_replica_in_a_thread_does_what_it_does_alone(make_setup, make_workload):
    """Both ways to drive an engine: requests that alternate between two replicas see what they would see alone."""
    rng = random.Random(5)
    arrivals = [(0.03 * i + 0.002 * rng.random(), rng.randint(1, 60), rng.randint(1, 9)) for i in range(60)]
    both = simulate(make_workload(*arrivals), make_setup(replicas=2, routing="round-robin")).results
    for replica in (0, 1):
        mine = arrivals[replica::2]
        alone = simulate(make_workload(*mine), make_setup()).results
        assert [result.total_s for result in alone] == pytest.approx([result.total_s for result in both[replica::2]])


def test_a_fleet_is_deterministic(make_setup, make_workload):
    rng = random.Random(1)
    workload = make_workload(*[(rng.random(), rng.randint(1, 60), rng.randint(1, 9), "relaxed") for _ in range(80)])
    once, again = (simulate(workload, make_setup(replicas=3, noise=0.3)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_request_that_never_fits_ends_the_simulation(make_setup, make_workload, replicas):
    with pytest.raises(RequestError, match="never fit the cache"):
        simulate(make_workload((0, 10, 1), (1, 5000, 1)), make_setup(num_pages=30, replicas=replicas))


@pytest.mark.parametrize("replicas", [1, 2])
def test_nothing_stays_behind_when_a_simulation_breaks(make_setup, make_workload, replicas):
    def break_down(number, steps):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        simulate(make_workload((0, 10, 50), (0.1, 10, 50)), make_setup(replicas=replicas, faults=break_down))
    assert threading.active_count() == before


def test_an_unknown_class(make_setup, make_workload):
    with pytest.raises(RequestError, match="unknown class"):
        simulate(make_workload((0, 10, 1, "urgent")), make_setup())


def test_shared_prefixes_are_computed_once(make_setup, make_workload):
    workload = make_workload((0, 80, 1), (1, 80, 1))
    arrivals = tuple(replace(arrival, prefix=(3,)) for arrival in workload.arrivals)
    shared = replace(workload, arrivals=arrivals, prefix_block_tokens=60)
    first, second = simulate(shared, make_setup()).results
    assert first.total_s == pytest.approx(0.090)
    assert second.total_s == pytest.approx(0.030)
    assert simulate(workload, make_setup()).results[1].total_s == pytest.approx(0.090)


def test_a_machine_that_does_other_work_is_slower(make_setup, make_workload):
    setup = make_setup(surroundings=Surroundings(slowness=2.0, step_s=0.005))
    (result,) = simulate(make_workload((0, 20, 3, "tight")), setup).results
    assert result.ttft_s == pytest.approx(2 * 0.030 + 0.005)
    assert result.total_s == pytest.approx(result.ttft_s + 2 * (2 * 0.011 + 0.005))
    assert result.outcome == "missed"


def test_calls_are_read_one_after_the_other(make_setup, make_workload):
    setup = make_setup(surroundings=Surroundings(call_s=0.025))
    first, second, third = simulate(make_workload((0, 20, 1), (0, 30, 1, "tight"), (1, 20, 1)), setup).results
    assert first.total_s == pytest.approx(0.025 + 0.030)
    assert second.total_s == pytest.approx(0.055 + 0.040)  # read at 50 ms, while the first is computed
    assert second.outcome == "missed"
    assert second.at_s == 0.0
    assert third.total_s == pytest.approx(0.025 + 0.030)


def test_calls_take_time_from_the_step_that_runs(make_setup, make_workload):
    setup = make_setup(surroundings=Surroundings(toll_s=0.006))
    workload = make_workload((0, 20, 1), (0.01, 20, 1), (0.034, 20, 1), (0.5, 20, 1))
    first, second, third, later = simulate(workload, setup).results
    assert first.total_s == pytest.approx(0.030 + 2 * 0.006)  # the third comes in what the second has added
    assert second.at_s + second.total_s > first.total_s
    assert third.outcome == "met"
    assert later.total_s == pytest.approx(0.030), "nobody came"
    alone = simulate(workload, replace(setup, replicas=2)).results
    assert alone[0].total_s < first.total_s, "those of another replica take nothing"


def test_tokens_are_written_one_after_the_other_and_after_calls(make_setup, make_workload):
    setup = make_setup(surroundings=Surroundings(token_s=0.015))
    together = simulate(make_workload((0, 20, 1, "tight"), (0, 10, 1, "tight")), setup)
    assert sorted(result.total_s for result in together.results) == pytest.approx([0.055, 0.070])
    assert {result.outcome for result in together.results} == {"missed"}  # the engine had them in time: 40 of 50 ms
    assert together.duration_s == pytest.approx(0.070)
    setup = make_setup(surroundings=Surroundings(call_s=0.02, token_s=0.001))
    first, second = simulate(make_workload((0, 20, 1), (0.045, 20, 1)), setup).results
    assert first.total_s == pytest.approx(0.066)  # computed by 50 ms; the second call is read until 65 ms
    assert second.total_s == pytest.approx(0.051)


def test_capacity_is_that_of_the_engine(make_setup, make_workload):
    workload = make_workload(*[(0, 20, 2)] * 20)
    alone = capacity(workload, make_setup())
    slower = capacity(workload, make_setup(surroundings=Surroundings(slowness=2.0, call_s=9.0, token_s=9.0)))
    assert slower == pytest.approx(alone / 2)
