"""Made-up arrivals have the statistics they are asked for."""

from __future__ import annotations

import itertools
import statistics

import pytest

from stepwell.serving.replay.synthetic import synthesize


def gaps(workload):
    times = [arrival.at_s for arrival in workload.arrivals]
    return [b - a for a, b in itertools.pairwise(times)]


def cv(values):
    return statistics.pstdev(values) / statistics.mean(values)


@pytest.mark.parametrize(
    ("spec", "rate", "expected_cv"),
    [("poisson:rate=5", 5, 1.0), ("poisson:0.2", 0.2, 1.0), ("gamma:rate=5,cv=3", 5, 3.0), ("gamma:2,cv=0", 2, 0.0)],
)
def test_rate_and_burstiness(spec, rate, expected_cv):
    workload = synthesize(spec, 20_000, seed=3)
    assert workload.rate == pytest.approx(rate, rel=0.08)
    assert cv(gaps(workload)) == pytest.approx(expected_cv, rel=0.08, abs=1e-6)


def test_steps_follow_their_rates():
    times = [arrival.at_s for arrival in synthesize("steps:rates=2/0/8,every=100", 4000).arrivals]
    counts = [sum(start <= t < start + 100 for t in times) for start in (0, 100, 200, 300)]
    assert counts[0] == pytest.approx(200, rel=0.25)
    assert counts[1] < 5  # the first arrival is at 0, not at the start of the first step
    assert counts[2] == pytest.approx(800, rel=0.15)
    assert counts[3] == pytest.approx(200, rel=0.25)


def test_diurnal_swings():
    times = [arrival.at_s for arrival in synthesize("diurnal:low=1,high=9,period=400", 6000).arrivals]
    night = sum(t % 400 < 50 or t % 400 > 350 for t in times)
    noon = sum(150 < t % 400 < 250 for t in times)
    assert noon / night == pytest.approx(8.6 / 1.4, rel=0.25)


def test_lengths_have_the_mean_and_spread_asked_for():
    workload = synthesize("poisson:rate=5,prompt=300,output=40,length_cv=0.5", 20_000)
    prompts, outputs = zip(*((a.prompt_tokens, a.output_tokens) for a in workload.arrivals), strict=True)
    assert statistics.mean(prompts) == pytest.approx(300, rel=0.03)
    assert statistics.mean(outputs) == pytest.approx(40, rel=0.03)
    assert cv(prompts) == pytest.approx(0.5, rel=0.05)
    fixed = synthesize("poisson:rate=5,prompt=300,output=1,length_cv=0", 50)
    assert {(a.prompt_tokens, a.output_tokens) for a in fixed.arrivals} == {(300, 1)}


def test_a_seed_repeats():
    assert synthesize("gamma:rate=5,cv=2", 50, seed=1) == synthesize("gamma:rate=5,cv=2", 50, seed=1)
    assert synthesize("gamma:rate=5,cv=2", 50, seed=1) != synthesize("gamma:rate=5,cv=2", 50, seed=2)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("burst:rate=5", ["unknown kind, got 'burst'", "'gamma', 'poisson'"]),
        ("poisson", ["rate: must be a number > 0", "''"]),
        ("poisson:prompt=5", ["rate (requests/s) missing"]),
        ("poisson:rate=5,cv=1", ["'cv=1'", "['rate']"]),
        ("poisson:rate=5,rate=6", ["given twice", "'rate=6'"]),
        ("poisson:rate=0", ["rate: must be a number > 0", "'0'"]),
        ("poisson:rate=nan", ["rate: must be a number > 0", "'nan'"]),
        ("poisson:rate=1/2", ["rate: must be a number > 0", "'1/2'"]),
        ("gamma:rate=1,cv=-1", ["cv: must be a number >= 0"]),
        ("steps:rates=0/0,every=3", ["rates: all 0"]),
        ("steps:rates=1/x,every=3", ["rates: must be", "'x'"]),
        ("diurnal:low=1,high=2", ["period (s) missing"]),
    ],
)
def test_a_bad_description_is_named(spec, words):
    with pytest.raises(ValueError, match="synthetic: ") as caught:
        synthesize(spec, 10)
    assert all(word in str(caught.value) for word in words)


def test_no_requests():
    with pytest.raises(ValueError, match="requests: must be >= 1, got 0"):
        synthesize("poisson:rate=1", 0)
