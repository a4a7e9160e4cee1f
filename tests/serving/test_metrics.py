"""What is counted for which end of a request, and the promises about buckets and labels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from stepwell.schedulers.correction import OnlineCorrection
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.config import ServerConfig, SLOClass
from stepwell.serving.engine.events import FinishEvent, Outcome, Report
from stepwell.serving.engine.observer import StepObservation
from stepwell.serving.errors import RequestError, Status
from stepwell.serving.metrics import OTHER, LabelFold, Metrics, buckets_with

POINT = OperatingPoint(0.5, 0.8, "depth", 1)
REPORT = Report(
    operating_point="depth:1",
    quality=0.8,
    slo_ms=200.0,
    predicted_ms=None,
    queue_ms=10.0,
    compute_ms=80.0,
    total_ms=100.0,
    slo_met=True,
    degraded=True,
    ttft_ms=30.0,
    tpot_ms=7.0,
    prompt_tokens=5,
    generated_tokens=11,
    cached_tokens=0,
    tokens_per_level={"depth:1": 11},
)
STEP = StepObservation("mixed", 0.004, 0.002, 3, 40, 2, 16, [("tight", 0.006)])


def request(slo: SLO) -> Request:
    return Request("r", 0.0, slo, (POINT,), 5, 11)


def finished(outcome: Outcome = Outcome.MET, **report: object) -> FinishEvent:
    return FinishEvent("r", outcome, "length", None, replace(REPORT, **report))  # type: ignore[arg-type]


def dropped(outcome: Outcome, reason: str | None) -> FinishEvent:
    error = RequestError(Status.DEADLINE_EXCEEDED, "late")
    return FinishEvent("r", outcome, "expired", error, REPORT, reason)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(slo_classes={"tight": SLOClass(ttft_ms=33.0, tpot_ms=7.5), "default": SLOClass(deadline_ms=1234)})


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"stepwell_{name}", {"model": "m", **labels}) or 0.0


def test_a_served_request(metrics: Metrics) -> None:
    metrics.observer("m").request_finished(finished(), request(SLO("tight", deadline_s=0.2, ttft_s=0.06)))
    assert value(metrics, "slo_requests_total", slo_class="tight", outcome="met") == 1
    assert value(metrics, "served_total", operating_point="depth:1") == 1
    for name, total in [
        ("request_seconds", 0.1),
        ("queue_seconds", 0.01),
        ("time_to_first_token_seconds", 0.03),
        ("time_per_output_token_seconds", 0.007),
        ("slo_ratio", 0.5),
        ("served_quality", 0.8),
    ]:
        assert value(metrics, f"{name}_count", slo_class="tight") == 1, name
        assert value(metrics, f"{name}_sum", slo_class="tight") == pytest.approx(total), name


@pytest.mark.parametrize(
    ("slo", "ratio"),
    [
        (SLO("tight", deadline_s=0.4), 0.25),
        (SLO("tight", ttft_s=0.02), 1.5),
        (SLO("tight", tpot_s=0.0035), 2.0),
        (SLO("tight", deadline_s=0.2, ttft_s=0.015, tpot_s=1.0), 2.0),
    ],
)
def test_slo_ratio_is_that_of_the_objective_it_was_worst_at(metrics: Metrics, slo: SLO, ratio: float) -> None:
    metrics.finished("m", finished(Outcome.MISSED), request(slo))
    assert value(metrics, "slo_ratio_sum", slo_class="tight") == pytest.approx(ratio)


def test_without_an_objective_there_is_no_ratio(metrics: Metrics) -> None:
    metrics.finished("m", finished(), request(SLO("tight")))
    assert value(metrics, "slo_ratio_count", slo_class="tight") == 0


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome.SHED, "queue_full"),
        (Outcome.EXPIRED, "queue_timeout"),
        (Outcome.CANCELLED, None),
        (Outcome.FAILED, None),
    ],
)
def test_a_request_that_got_no_answer_counts_only_as_such(metrics: Metrics, outcome: Outcome, reason: str) -> None:
    metrics.finished("m", dropped(outcome, reason), request(SLO("tight")))
    assert value(metrics, "slo_requests_total", slo_class="tight", outcome=outcome.value) == 1
    assert value(metrics, "request_seconds_count", slo_class="tight") == 0
    assert value(metrics, "served_total", operating_point="depth:1") == 0
    assert value(metrics, "shed_total", reason=reason or "") == (reason is not None)


def test_a_request_turned_away_before_the_engine(metrics: Metrics) -> None:
    metrics.refused("m", "tight", "draining")
    assert value(metrics, "slo_requests_total", slo_class="tight", outcome="shed") == 1
    assert value(metrics, "shed_total", reason="draining") == 1


def test_how_long_an_answer_was_under_way(metrics: Metrics) -> None:
    for seconds in (0.004, math.nan, -1e-9):
        metrics.observer("m").delivered(seconds, request(SLO("tight")))
    assert value(metrics, "delivery_seconds_count", slo_class="tight") == 2
    assert value(metrics, "delivery_seconds_sum", slo_class="tight") == 0.004


def test_a_step(metrics: Metrics) -> None:
    metrics.observer("m").step_finished(STEP)
    assert value(metrics, "step_seconds_sum", kind="mixed") == 0.004
    assert value(metrics, "step_prediction_ratio_sum", kind="mixed") == 2.0
    assert [value(metrics, "tokens_total", kind=k) for k in ("prompt", "generated", "cached")] == [40, 2, 16]
    assert value(metrics, "inter_token_seconds_sum", slo_class="tight") == 0.006


def test_a_step_without_prediction_has_no_ratio(metrics: Metrics) -> None:
    metrics.step("m", replace(STEP, predicted_s=None))
    assert value(metrics, "step_prediction_ratio_count", kind="mixed") == 0


def test_gauges_are_read_when_asked_for_and_go_with_the_model(metrics: Metrics) -> None:
    class Source:
        num_waiting = 3
        num_running = 2
        cache_usage_ratio = 0.25
        backlog_s = 1.5
        call_toll_s = 0.002
        correction = OnlineCorrection()
        prediction_error, prediction_coverage = correction.error, correction.coverage
        prediction_slowness = correction.median

    source, correction = Source(), Source.correction
    metrics.watch("m", source)
    source.num_waiting = 4
    names = ("requests_waiting", "requests_running", "kv_cache_usage_ratio", "call_toll_seconds")
    assert [value(metrics, name) for name in names] == [4, 2, 0.25, 0.002]
    for actual_s in (1.0, 1.0, 3.0):
        correction.observe("decode", 1.0, actual_s)
    assert value(metrics, "step_prediction_error_ratio", kind="decode") == correction.error("decode") < 0.1
    assert value(metrics, "step_prediction_coverage_ratio", kind="decode") == pytest.approx(2 / 3)
    assert value(metrics, "step_slowness_ratio", kind="decode") == correction.median("decode")
    assert math.isnan(value(metrics, "step_prediction_error_ratio", kind="mixed"))
    metrics.unwatch("m")
    gone = {"model": "m", "kind": "decode"}
    assert metrics.registry.get_sample_value("stepwell_step_prediction_error_ratio", gone) is None
    assert metrics.registry.get_sample_value("stepwell_requests_waiting", {"model": "m"}) is None


def test_buckets_start_at_a_millisecond_and_contain_every_threshold(metrics: Metrics) -> None:
    metrics.finished("m", finished(), request(SLO("tight")))
    metrics.step("m", STEP)
    bounds: dict[str, set[float]] = {}
    for family in parse_text(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            if sample.name.endswith("_seconds_bucket"):
                bounds.setdefault(family.name, set()).add(float(sample.labels["le"]))
    assert len(bounds) == 6
    for name, found in bounds.items():
        assert min(found) == 0.001, name
        assert found >= {0.033, 0.0075, 1.234, math.inf}, name


def test_thresholds_below_the_first_bucket_do_not_move_it() -> None:
    assert min(buckets_with([0.2, None, 3.0])) == 0.001
    assert 0.003 in buckets_with([0.2, None, 3.0])


def test_names_have_the_prefix_and_no_colon(metrics: Metrics) -> None:
    metrics.step("m", STEP)
    names = [family.name for family in metrics.registry.collect()]
    assert all(name.startswith("stepwell_") and ":" not in name for name in names)


def test_label_values_are_capped() -> None:
    fold = LabelFold(limit=3, known=["a"])
    assert [fold(v) for v in "abcdea"] == ["a", "b", "c", OTHER, OTHER, "a"]


def test_two_servers_in_one_process_do_not_share_counts() -> None:
    registry = CollectorRegistry()
    first, second = Metrics(registry), Metrics(slo_classes=ServerConfig().slo_classes)
    first.refused("m", "default", "draining")
    assert value(first, "shed_total", reason="draining") == 1
    assert value(second, "shed_total", reason="draining") == 0
    assert first.registry is registry
