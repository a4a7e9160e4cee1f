"""What an end is by the time its reader gets it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.delivery import as_delivered, way_s
from stepwell.serving.engine.endings import cancelled
from stepwell.serving.engine.events import FinishEvent, Outcome, Report

POINT = OperatingPoint(1.0, 1.0, "depth", 0)
ARRIVAL_S = 100.0


def request(**slo: float) -> Request:
    return Request("r", ARRIVAL_S, SLO(**slo), (POINT,), prompt_tokens=4, max_tokens=8)


def ended(total_ms: float, tokens: int = 1, ttft_ms: float | None = 10.0, **fields) -> FinishEvent:
    report = Report("depth:0", 1.0, None, None, 0.0, 1.0, total_ms, True, False, ttft_ms, None, 4, tokens, 0, {})
    return FinishEvent("r", Outcome.MET, "length", None, replace(report, **fields))


def test_the_way_is_part_of_the_latency() -> None:
    event = as_delivered(ended(40.0), request(deadline_s=0.1), ARRIVAL_S + 0.07)
    assert event.outcome is Outcome.MET
    assert event.report.slo_met
    assert event.report.total_ms == pytest.approx(70.0)
    assert way_s(ended(40.0), request(), ARRIVAL_S + 0.07) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("tokens", "slo"),
    [
        (1, {"deadline_s": 0.1}),
        (5, {"deadline_s": 0.1}),
        (1, {"ttft_s": 0.1}),
        (5, {"ttft_s": 0.06, "tpot_s": 0.01}),
        (5, {"tpot_s": 0.0225}),
    ],
)
def test_what_was_in_time_for_the_engine_may_be_late_for_its_reader(tokens: int, slo: dict[str, float]) -> None:
    for delivered_s, met in ((0.099, True), (0.101, False)):
        event = as_delivered(ended(90.0, tokens), request(**slo), ARRIVAL_S + delivered_s)
        assert event.report.slo_met == met
        assert event.outcome is (Outcome.MET if met else Outcome.MISSED)


def test_what_was_late_stays_late() -> None:
    missed = ended(90.0, 5, slo_met=False, worst_lateness_ms=30.0)
    event = as_delivered(replace(missed, outcome=Outcome.MISSED), request(ttft_s=0.01, tpot_s=1.0), ARRIVAL_S + 0.1)
    assert event.outcome is Outcome.MISSED
    assert event.report.worst_lateness_ms == 30.0


def test_what_has_no_answer_is_as_it_was() -> None:
    outcome, reason, error, _ = cancelled()
    assert outcome is not None
    event = FinishEvent("r", outcome, reason, error, ended(10.0).report)
    assert as_delivered(event, request(deadline_s=0.001), ARRIVAL_S + 9.0) is event
    assert math.isnan(way_s(event, request(), ARRIVAL_S + 9.0))


@given(st.floats(0.0, 10.0), st.floats(0.0, 10.0), st.integers(1, 8))
def test_later_is_never_better(early_s: float, later_s: float, tokens: int) -> None:
    asked = request(deadline_s=5.0, ttft_s=2.0, tpot_s=0.4)
    first, second = (as_delivered(ended(0.0, tokens), asked, ARRIVAL_S + s).report for s in sorted((early_s, later_s)))
    assert first.slo_met >= second.slo_met
    assert (first.worst_lateness_ms or 0.0) <= (second.worst_lateness_ms or 0.0)
