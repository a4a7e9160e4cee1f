"""Lateness of single requests, and the summary of many."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.replay.outcomes import OUTCOMES, LatenessMeter, RequestResult, Summary, percentile


def ratio(slo, token_times, end_s=None):
    meter = LatenessMeter(slo)
    for at_s in token_times:
        meter.token(at_s)
    return meter.finished(token_times[-1] if end_s is None else end_s)


@pytest.mark.parametrize(
    ("slo", "times", "expected"),
    [
        (SLO(), [1, 2], None),
        (SLO(deadline_s=4), [1, 2], 0.5),
        (SLO(ttft_s=2), [1, 99], 0.5),
        (SLO(ttft_s=2, tpot_s=1), [1, 2, 3], 0.75),  # due at 2, 3, 4
        (SLO(ttft_s=2, tpot_s=1), [1, 6], 2.0),
        (SLO(tpot_s=1), [50], 0.0),
        (SLO(tpot_s=1), [50, 51.5, 52], 1.5),  # due at 51, 52
        (SLO(ttft_s=2, deadline_s=10), [1, 15], 1.5),
    ],
)
def test_lateness_by_hand(slo, times, expected):
    assert ratio(slo, times) == (None if expected is None else pytest.approx(expected))


TIMES = st.floats(0.01, 50) | st.just(math.inf)


@given(TIMES, TIMES, TIMES, st.lists(st.floats(0.01, 5), min_size=1, max_size=8))
def test_a_ratio_above_one_is_a_token_after_its_due_time(deadline_s, ttft_s, tpot_s, gaps):
    slo = SLO(deadline_s=deadline_s, ttft_s=ttft_s, tpot_s=tpot_s)
    times = [sum(gaps[: k + 1]) for k in range(len(gaps))]
    request = Request("r", 0.0, slo, (OperatingPoint(1, 1, "l", 0),), 1, len(times))
    request.first_token_s = times[0]
    margins = [at_s - request.token_due_s(k) for k, at_s in enumerate(times)] + [times[-1] - request.deadline_s]
    if max(margins) != pytest.approx(0.0, abs=1e-9):
        assert ((ratio(slo, times) or 0.0) > 1.0) == (max(margins) > 0)


def result(outcome, slo_class="a", quality=1.0, total_s=1.0, lateness=None):
    served = outcome in ("met", "missed")
    return RequestResult(0, 0.0, slo_class, outcome, quality, total_s, 0.1 if served else None, lateness_ratio=lateness)


def test_a_summary_by_hand():
    results = [
        result("met", quality=0.8, total_s=1, lateness=0.5), result("met", "b", quality=0.6, total_s=2),
        result("missed", quality=1.0, total_s=9, lateness=1.4), result("shed", quality=0),
        result("expired", quality=0.3), result("cancelled"), result("failed", "b"), result("shed", "b"),
    ]  # fmt: skip
    summary = Summary.of(results, duration_s=10)
    assert summary.num_sent == 8
    assert summary.outcomes == {"met": 2, "missed": 1, "shed": 2, "expired": 1, "cancelled": 1, "failed": 1}
    assert summary.attainment == pytest.approx(2 / 8)
    assert summary.mean_quality == pytest.approx((0.8 + 0.6 + 1.0) / 3)
    assert summary.goodput == pytest.approx((0.8 + 0.6) / 10)
    assert (summary.latency_p50_s, summary.latency_p99_s, summary.ttft_p99_s) == (2, 9, 0.1)
    assert summary.refusals == 3
    assert summary.worst_lateness_ratio == 1.4
    assert {name: part.num_sent for name, part in summary.per_class.items()} == {"a": 5, "b": 3}
    assert summary.per_class["b"].attainment == pytest.approx(1 / 3)
    document = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert document["per_class"]["a"]["refusals"] == 2
    assert document["refusals"] == 3


def test_nothing_served_has_no_latency():
    summary = Summary.of([result("shed")], 0.0)
    assert (summary.attainment, summary.goodput) == (0, 0)
    assert summary.mean_quality is summary.latency_p50_s is summary.worst_lateness_ratio is None
    with pytest.raises(ValueError, match="results: none"):
        Summary.of([], 1.0)


@given(st.lists(st.tuples(st.sampled_from(OUTCOMES), st.sampled_from("abc")), min_size=1, max_size=30))
def test_classes_add_up(drawn):
    summary = Summary.of([result(*each) for each in drawn], 3.0)
    assert sum(summary.outcomes.values()) == summary.num_sent == len(drawn)
    for outcome in OUTCOMES:
        assert sum(part.outcomes[outcome] for part in summary.per_class.values()) == summary.outcomes[outcome]
    assert sum(part.goodput for part in summary.per_class.values()) == pytest.approx(summary.goodput)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values, quantile):
    found = percentile(values, quantile)
    assert sum(value <= found for value in values) >= quantile * len(values) - 1e-9
    assert sum(value < found for value in values) < quantile * len(values) + 1e-9
    assert percentile([], quantile) is None
