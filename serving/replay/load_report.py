"""A replay on a server in numbers: outcomes, percentiles, refusals, the two verdicts, and the generator itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stepwell.serving.replay.load import LoadRecord, LoadRun
from stepwell.serving.replay.outcomes import REFUSED, RequestResult, Summary, percentile

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
LATENCIES = ("total_s", "ttft_s", "tpot_s")
LATE_S = 0.01
"""A generator whose p99 lag is above this did not offer the load it was asked for."""


def report(run: LoadRun) -> dict[str, Any]:
    """Everything but the single requests, for JSON. Times in seconds; None where no request gives one."""
    workload, target, records = run.workload, run.target, run.records
    return {
        "workload": {
            "name": workload.name,
            "notes": list(workload.notes),
            "requests": len(workload),
            "rate": workload.rate if workload.span_s > 0 else None,
            "span_s": workload.span_s,
        },
        "target": asdict(target),
        "summary": Summary.of(run.results, run.duration_s).to_dict(),
        "latency": latencies([record.result for record in records]),
        "latency_from_send": latencies([since_send(record) for record in records])["all"],
        "refusals": {outcome: refusals(records, outcome) for outcome in REFUSED},
        "failures": failures(records),
        "verdicts": verdicts(records),
        "generator": generator(run),
    }


def latencies(results: Sequence[RequestResult]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Percentiles over the requests served: of all together (``all``) and of each class."""
    names = sorted({result.slo_class for result in results})
    groups = {"all": [result for result in results if result.served]}
    groups |= {name: [result for result in groups["all"] if result.slo_class == name] for name in names}
    return {
        group: {latency: percentiles([getattr(result, latency) for result in some]) for latency in LATENCIES}
        for group, some in groups.items()
    }


def percentiles(values: Sequence[float | None]) -> dict[str, float | None]:
    """Those of :data:`QUANTILES`, over the values that are known."""
    known = [value for value in values if value is not None]
    return {name: percentile(known, quantile) for name, quantile in QUANTILES.items()}


def since_send(record: LoadRecord) -> RequestResult:
    """The result with latencies that count from when the request was really sent."""
    fields = vars(record.result) | {"total_s": record.result.total_s - record.lag_s}
    if record.result.ttft_s is not None:
        fields["ttft_s"] = record.result.ttft_s - record.lag_s
    return RequestResult(**fields)


def refusals(records: Sequence[LoadRecord], outcome: str) -> dict[str, Any]:
    """How many got this outcome, and how soon they were told: since they were due, since they were sent, and of that
    the part the server accounts for (over those it says it of; the rest is the way and this side)."""
    refused = [record for record in records if record.result.outcome == outcome]
    in_server = [None if record.server_total_ms is None else record.server_total_ms / 1e3 for record in refused]
    return {
        "count": len(refused),
        "answer_s": percentiles([record.result.total_s for record in refused]),
        "answer_from_send_s": percentiles([record.result.total_s - record.lag_s for record in refused]),
        "in_server_s": percentiles(in_server),
    }


def failures(records: Sequence[LoadRecord]) -> dict[str, dict[str, Any]]:
    """Failed requests by gRPC status, each with the words of the first."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.result.outcome == "failed":
            found.setdefault(record.status, {"count": 0, "first_message": record.message})["count"] += 1
    return found


def verdicts(records: Sequence[LoadRecord]) -> dict[str, int]:
    """The server's verdicts against this side's, over the requests served with one."""
    judged = [(record.slo_met, record.result.outcome == "met") for record in records if record.slo_met is not None]
    return {
        "compared": len(judged),
        "only_server_says_met": judged.count((True, False)),
        "only_client_says_met": judged.count((False, True)),
    }


def generator(run: LoadRun) -> dict[str, Any]:
    """Whether the generator itself was fast enough to be believed."""
    lags = percentiles([record.lag_s for record in run.records])
    p99 = lags["p99"]
    assert p99 is not None, "a workload has requests"
    return {
        "lag_s": lags | {"max": max(record.lag_s for record in run.records)},
        "kept_up": p99 <= LATE_S,
        "cpu_s_per_request": run.cpu_s / len(run.records),
    }


def record_document(record: LoadRecord) -> dict[str, Any]:
    """One request, for JSON: the fields of its result and of its record side by side."""
    fields = {key: value for key, value in vars(record).items() if key != "result"}
    return vars(record.result) | fields
