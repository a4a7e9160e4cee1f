from __future__ import annotations

import json
from typing import Any

import pytest

from stepwell.serving.cli.bench_table import describe
from stepwell.serving.config import SLOClass
from stepwell.serving.replay.load import LoadRecord, LoadRun, Target
from stepwell.serving.replay.load_report import LATE_S, record_document, report
from stepwell.serving.replay.outcomes import RequestResult
from stepwell.serving.replay.workload import Arrival, Workload

STATUS_OF = {"shed": "RESOURCE_EXHAUSTED", "expired": "DEADLINE_EXCEEDED", "failed": "UNAVAILABLE"}


def record(number: int, outcome: str, total_s: float, lag_s: float = 0.001, **fields: Any) -> LoadRecord:
    slo_class = "tight" if number % 2 else "relaxed"
    served = {"ttft_s": total_s / 2, "tpot_s": 0.01, "generated_tokens": 5, "lateness_ratio": total_s}
    quality = 0.8 if outcome in ("met", "missed") else 0.0
    result = RequestResult(number, 0.1 * number, slo_class, outcome, quality, total_s, **(served if quality else {}))
    message = "" if quality else f"why {number}"
    return LoadRecord(
        result, lag_s, STATUS_OF.get(outcome, "OK"), message, fields.get("slo_met"), None, None, fields.get("server_ms")
    )  # fmt: skip


def run_of(*records: LoadRecord) -> LoadRun:
    workload = Workload.of("made", [Arrival(r.result.at_s, 3, 5, r.result.slo_class) for r in records])
    classes = {"tight": SLOClass(ttft_ms=100.0), "relaxed": SLOClass()}
    return LoadRun(workload, Target("localhost:1", "tiny", classes), records, duration_s=10.0, cpu_s=0.02)


@pytest.fixture
def run() -> LoadRun:
    """100 served in 1..100 ms, 2 refused, 2 failed."""
    served = [record(i, "met" if i < 98 else "missed", (i + 1) / 1e3, slo_met=i != 5) for i in range(100)]
    shed, expired = record(100, "shed", 0.004, 0.003), record(101, "expired", 0.2)
    return run_of(*served, shed, expired, record(102, "failed", 0.01), record(103, "failed", 0.01))


def test_percentiles_are_those_of_the_served(run):
    found = report(run)["latency"]
    assert found["all"]["total_s"] == {"p50": 0.050, "p90": 0.090, "p99": 0.099, "p99.9": 0.100}
    assert found["tight"]["total_s"]["p50"] == 0.050
    assert found["relaxed"]["total_s"]["p50"] == 0.049
    assert found["all"]["ttft_s"]["p99"] == pytest.approx(0.099 / 2)
    assert set(found) == {"all", "tight", "relaxed"}


def test_latencies_from_the_send_leave_the_lag_out(run):
    found = report(run)
    for latency in ("total_s", "ttft_s"):
        due, sent = found["latency"]["all"][latency]["p90"], found["latency_from_send"][latency]["p90"]
        assert sent == pytest.approx(due - 0.001)
    assert found["latency_from_send"]["tpot_s"] == found["latency"]["all"]["tpot_s"]


def test_refusals_failures_and_verdicts_are_counted(run):
    found = report(run)
    assert found["refusals"]["shed"]["count"] == found["refusals"]["expired"]["count"] == 1
    assert found["refusals"]["shed"]["answer_s"]["p99"] == 0.004
    assert found["refusals"]["shed"]["answer_from_send_s"]["p99"] == pytest.approx(0.001)
    assert found["refusals"]["shed"]["in_server_s"]["p99"] is None
    assert found["failures"] == {"UNAVAILABLE": {"count": 2, "first_message": "why 102"}}
    assert found["verdicts"] == {"compared": 100, "only_server_says_met": 2, "only_client_says_met": 1}
    summary = found["summary"]
    assert sum(summary["outcomes"].values()) == summary["num_sent"] == 104
    assert summary["goodput"] == pytest.approx(0.8 * 98 / 10.0)


def test_a_generator_that_is_late_says_so(run):
    assert report(run)["generator"]["kept_up"]
    late = run_of(*(record(i, "met", 0.05, lag_s=2 * LATE_S) for i in range(10)))
    found = report(late)
    assert not found["generator"]["kept_up"]
    assert found["generator"]["cpu_s_per_request"] == pytest.approx(0.002)
    assert "WARNING: it did not keep up" in describe(found)
    assert "WARNING" not in describe(report(run))


def test_it_is_json_also_where_nothing_was_served(run):
    for each in (run, run_of(record(0, "shed", 0.01)), run_of(record(0, "failed", 0.01))):
        document = json.loads(json.dumps(report(each), allow_nan=False))
        assert document["target"]["slo_classes"]["tight"]["ttft_ms"] == 100.0
        lines = [json.loads(json.dumps(record_document(each), allow_nan=False)) for each in each.records]
        assert [line["arrival"] for line in lines] == [r.result.arrival for r in each.records]
        assert {"outcome", "lag_s", "status", "total_s"} <= set(lines[0])
        assert "result" not in lines[0]


def test_the_text_has_a_line_a_class_and_all_that_went_wrong(run):
    text = describe(report(run))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["all"].split()[1:8] == ["104", "98", "2", "1", "1", "0", "2"]
    assert "shed: 1, told 4.0 ms (p50)" in text
    assert "in the server" not in text
    told = describe(report(run_of(record(0, "shed", 0.004, 0.003, server_ms=0.4))))
    assert "1.0, 1.0 ms after they were sent, of which 0.4, 0.4 ms in the server" in told
    assert "failed: 2 with UNAVAILABLE, the first: why 102" in text
    assert "differs for 3 of 100 served: 2 met only by its clock, 1 only by ours" in text
