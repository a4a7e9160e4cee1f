"""A replay's report in words and tables, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.serving.cli.output import table
from stepwell.serving.replay.load_report import LATE_S, QUANTILES
from stepwell.serving.replay.outcomes import OUTCOMES

_LATENCY_NAMES = {"total_s": "whole answer", "ttft_s": "first token", "tpot_s": "each token after"}


def describe(document: Mapping[str, Any]) -> str:
    """All of :func:`~stepwell.serving.replay.load_report.report`, as text."""
    parts = [_workload(document), outcome_table(document["summary"]), latency_table(document["latency"])]
    return "\n\n".join([*parts, "\n".join(remarks(document))])


def _workload(document: Mapping[str, Any]) -> str:
    workload = document["workload"]
    rate = "at once" if workload["rate"] is None else f"{workload['rate']:.4g}/s on average"
    head = f"{workload['name']}: {workload['requests']} requests in {workload['span_s']:.1f} s, {rate}"
    return "\n".join([head, *(f"  {note}" for note in workload["notes"])])


def outcome_table(summary: Mapping[str, Any]) -> str:
    """A line a class, and one for all."""
    headers = ["class", "sent", *OUTCOMES, "attainment", "quality", "goodput/s", "worst"]
    groups = {**summary["per_class"], "all": summary}
    rows = [_outcomes(name, some) for name, some in groups.items()]
    note = "goodput: met, weighted by quality; worst: latency over latency asked, of what was served"
    if summary["mean_kept_ratio"] is not None:
        headers.append("kept")
        for row, some in zip(rows, groups.values(), strict=True):
            row.append("-" if some["mean_kept_ratio"] is None else f"{some['mean_kept_ratio']:.0%}")
        note += "; kept: tokens that were left, averaged over the layers"
    return table(headers, rows, left=["class"]) + f"\n({note})"


def _outcomes(name: str, summary: Mapping[str, Any]) -> list[str]:
    counts = [str(summary["outcomes"][outcome]) for outcome in OUTCOMES]
    quality, worst = summary["mean_quality"], summary["worst_lateness_ratio"]
    return [
        name,
        str(summary["num_sent"]),
        *counts,
        f"{summary['attainment']:.1%}",
        "-" if quality is None else f"{quality:.4f}",
        f"{summary['goodput']:.3f}",
        "-" if worst is None else f"{worst:.2f}",
    ]


def latency_table(latency: Mapping[str, Any]) -> str:
    """Percentiles of what was served, in milliseconds; of the latencies that there are."""
    known = [key for key in _LATENCY_NAMES if key == "total_s" or latency["all"][key]["p50"] is not None]
    headers = ["served, ms since due", "class", *QUANTILES]
    rows = [
        [words, group, *(_ms(some[key][name]) for name in QUANTILES)]
        for key, words in _LATENCY_NAMES.items()
        if key in known
        for group, some in sorted(latency.items(), key=lambda item: item[0] == "all")
    ]
    return table(headers, rows, left=headers[:2])


def remarks(document: Mapping[str, Any]) -> list[str]:
    """Refusals, failures, disagreements, and whether the generator can be believed."""
    lines = []
    for outcome, found in document["refusals"].items():
        if found["count"]:
            due, sent, inside = found["answer_s"], found["answer_from_send_s"], found["in_server_s"]
            part = (
                ""
                if inside["p50"] is None
                else f", of which {_ms(inside['p50'])}, {_ms(inside['p99'])} ms in the server"
            )
            lines.append(
                f"{outcome}: {found['count']}, told {_ms(due['p50'])} ms (p50), {_ms(due['p99'])} ms (p99) after they "
                f"were due; {_ms(sent['p50'])}, {_ms(sent['p99'])} ms after they were sent{part}"
            )
    for status, found in document["failures"].items():
        lines.append(f"failed: {found['count']} with {status}, the first: {found['first_message']}")
    verdicts = document["verdicts"]
    if verdicts["compared"]:
        theirs, ours = verdicts["only_server_says_met"], verdicts["only_client_says_met"]
        lines.append(
            f"the server's verdict differs for {theirs + ours} of {verdicts['compared']} served: "
            f"{theirs} met only by its clock, {ours} only by ours"
        )
    return [*lines, *_generator(document["generator"])]


def _generator(found: Mapping[str, Any]) -> list[str]:
    lag = found["lag_s"]
    pace = (
        f"generator: sent {_ms(lag['p50'])} ms (p50), {_ms(lag['p99'])} ms (p99) after due; "
        f"{found['cpu_s_per_request'] * 1e3:.2f} ms of processor time a request"
    )
    warning = (
        f"WARNING: it did not keep up (p99 above {LATE_S * 1e3:.0f} ms): latencies are honest, but the load was not "
        "what was asked; lower the rate, use --unary, or give it a processor of its own"
    )
    return [pace] if found["kept_up"] else [pace, warning]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"
