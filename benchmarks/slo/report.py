"""Tables, pictures and verdicts of what ``measure.py`` found: ``python benchmarks/slo/report.py``.

Reads ``benchmarks/results/slo_TRACE.json``; writes ``slo_TRACE.md`` and ``slo_TRACE.png`` beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stepwell.serving.replay.plots import save_plot

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS

OURS, FULL, RIVAL = "staircase", "max_quality", "slack_fit"
BOUND = ("fixed:min", "max_throughput")
"""Both run everybody at the smallest level; what the better one attains counts."""
HEADER = (
    "load", "policy", "attained", "least, most", "mean quality", "goodput/s", "refused", "p50 s", "p99 s", "worst late",
    "refused in ms, p99: server", "since sent", "simulated: attained", "quality",
)  # fmt: skip
LEGEND = (
    "Medians of the rounds, but for *least, most* attained and *worst late*, which are of all. *Attained*: met, of all "
    "sent, by the client's clock from when each was due to be sent. *Quality*: of what was served, every token at its "
    "own level. *Goodput*: at the median pace of the machine. *Worst late*: latency over latency asked. *Refused*: of "
    "all that were sent. *Refused in*: from when the server had the request until it had its answer; and from when it "
    "was sent. *fixed:min*, *max_throughput*: everyone at the smallest level and nobody refused: the bound of what can "
    "be attained, as long as that keeps up."
)
REFUSED_IN = (("arrival at the server", "in_server_s"), ("being sent", "answer_from_send_s"))
"""Spans of a refusal, and where they begin."""
Cells = Mapping[tuple[str, float], Mapping[str, Any]]
"""By policy and load: what is in the table of all rounds."""


def main() -> None:
    """See the module."""
    for path in sorted(RESULTS.glob("slo_*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        cells = _cells(document)
        text = "\n".join([*_head(document), *_table(document, cells), "", *_verdicts(document, cells), ""])
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        lines = {
            policy: [(load, SimpleNamespace(**cells[policy, load])) for load in _loads(document)]
            for policy in _policies(document)
        }
        machine = document["hardware"].split(";")[0]
        title = f"Azure {document['trace']} on {machine}; load 1 = {_capacity(document):.3g} requests/s"
        save_plot(path.with_suffix(".png"), title, lines)  # type: ignore[arg-type]
        print(text)


def _cells(document: Mapping[str, Any]) -> Cells:
    """Medians over the rounds. Rates are as of the median pace of the machine."""
    capacity = {(s["round"], s["load"]): s["capacity"] for s in document["settings"]}
    runs: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run in document["runs"]:
        runs.setdefault((run["policy"], run["load"]), []).append(run)
    cells = {}
    for key, rounds in runs.items():
        figures = []
        for run in rounds:
            summary = run["summary"]
            figures.append({
                **{name: summary[name] for name in ("attainment", "mean_quality", "latency_p50_s", "latency_p99_s")},
                "refused_share": summary["refusals"] / summary["num_sent"],
                "goodput_share": summary["goodput"] / capacity[run["round"], run["load"]],
                **{span: run["refusals"]["shed"][span]["p99"] for _, span in REFUSED_IN},
                **{f"simulated_{name}": run["simulated"][name] for name in ("attainment", "mean_quality")},
            })  # fmt: skip
        cell: dict[str, Any] = {name: _median([of_run[name] for of_run in figures]) for name in figures[0]}
        attained = [run["summary"]["attainment"] for run in rounds]
        worst = [run["summary"]["worst_lateness_ratio"] or 0.0 for run in rounds]
        cells[key] = {
            **cell, "goodput": cell["goodput_share"] * _capacity(document), "least": min(attained),
            "most": max(attained), "worst_lateness_ratio": max(worst),
        }  # fmt: skip
    return cells


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _capacity(document: Mapping[str, Any]) -> float:
    return statistics.median(setting["capacity"] for setting in document["settings"])


def _loads(document: Mapping[str, Any]) -> list[float]:
    return sorted({run["load"] for run in document["runs"]})


def _policies(document: Mapping[str, Any]) -> list[str]:
    names = {run["policy"] for run in document["runs"]}
    return sorted(names, key=lambda name: (name != OURS, name))


def _head(document: Mapping[str, Any]) -> list[str]:
    settings = document["settings"]
    classes = "; ".join(
        f"{name}: " + ", ".join(f"{key} {_range([s['classes'][name][key] for s in settings], '.0f')}" for key in wishes)
        for name, wishes in settings[0]["classes"].items()
    )
    return [
        f"## SLO attainment and quality against load: Azure {document['trace']}, nested-lm, the real server", "",
        document["hardware"], "",
        (f"Load 1, measured before each load, = {_range([s['capacity'] for s in settings], '.3g')} requests/s; "
        f"requests of a run: {_sizes(document)}."),
        "; ".join(document["notes"]) + ".",
        f"Classes, relative to the machine at that time: {classes}.", _surroundings(settings), "",
    ]  # fmt: skip


def _range(values: Sequence[float], spec: str) -> str:
    least, most = f"{min(values):{spec}}", f"{max(values):{spec}}"
    return least if least == most else f"{least} to {most}"


def _surroundings(settings: Sequence[Mapping[str, Any]]) -> str:
    def of(name: str, factor: float = 1e3) -> str:
        return _range([s["surroundings"][name] * factor for s in settings], ".2f")

    return (
        f"Measured around the engine, for load 1 and the simulation: steps take {of('slowness', 1.0)} times their "
        f"profile and {of('step_s')} ms more; the endpoint and the client take {of('call_s')} ms a call, "
        f"{of('token_s')} ms a token; a call takes {of('toll_s')} ms from the step that runs when it comes."
    )


def _sizes(document: Mapping[str, Any]) -> str:
    settings, sizes = document["settings"], []
    for load in _loads(document):
        requests = [s["requests"] for s in settings if s["load"] == load]
        sizes.append(f"{_range(requests, 'd')} at load {load:g}" + f" ({len(requests)} rounds)" * (len(requests) > 1))
    return f"{', '.join(sizes)}, in {_range([s['seconds'] for s in settings], 'g')} s"


def _table(document: Mapping[str, Any], found: Cells) -> list[str]:
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for load in _loads(document):
        for policy in _policies(document):
            cell = found[policy, load]
            cells = [
                f"{load:g}", policy, f"{cell['attainment']:.1%}", f"{cell['least']:.1%}, {cell['most']:.1%}",
                _figure(cell["mean_quality"], 3), f"{cell['goodput']:.2f}", f"{cell['refused_share']:.1%}",
                _figure(cell["latency_p50_s"], 3), _figure(cell["latency_p99_s"], 3),
                _figure(cell["worst_lateness_ratio"], 2),
                *(_figure(cell[span], 1, 1e3) for _, span in REFUSED_IN),
                f"{cell['simulated_attainment']:.1%}", _figure(cell["simulated_mean_quality"], 3),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", LEGEND]


def _verdicts(document: Mapping[str, Any], cells: Cells) -> list[str]:
    loads, others = _loads(document), [p for p in _policies(document) if p not in (OURS, BOUND[0])]

    def of(policy: str, load: float, key: str) -> float:
        return float(cells[policy, load][key] or 0.0)

    lines = ["| aim | holds | figures |", "|---|---|---|"]

    def say(aim: str, holds: list[bool], figures: list[str]) -> None:
        verdict = "nothing to judge" if not holds else "yes" if all(holds) else f"{sum(holds)} of {len(holds)}"
        lines.append(f"| {aim} | {verdict} | {'; '.join(figures)} |")

    def beats(policy: str, load: float) -> bool:
        """At least as good in both, and by more than half a point in one."""
        gains = [of(policy, load, key) - of(OURS, load, key) for key in ("attainment", "mean_quality")]
        return min(gains) >= 0 and max(gains) > 0.005

    beaten = {load: [policy for policy in others if beats(policy, load)] for load in loads}
    say(
        "no other policy is as good in both attainment and quality and better in one",
        [not names for names in beaten.values()],
        [f"{load:g}: {', '.join(names) or 'none'}" for load, names in beaten.items()],
    )
    lost = [load for load in loads if of(FULL, load, "attainment") < 0.5]
    bounds = [max(of(policy, load, "attainment") for policy in BOUND if (policy, load) in cells) for load in lost]
    shares = [of(OURS, load, "attainment") / max(bound, 1e-9) for load, bound in zip(lost, bounds, strict=True)]
    say("where max_quality attains < 50 %: >= 99 % of the bound", [s >= 0.99 for s in shares],
        [f"{load:g}: {share:.1%}" for load, share in zip(lost, shares, strict=True)])  # fmt: skip
    middle = [load for load in loads if 1 <= load <= 2]
    gains = [of(OURS, load, "mean_quality") - of(RIVAL, load, "mean_quality") for load in middle]
    more = [of(OURS, load, "attainment") - of(RIVAL, load, "attainment") for load in middle]
    say("loads 1 to 2: quality >= slack_fit + 3 points, attainment no lower",
        [g >= 0.03 and m >= 0 for g, m in zip(gains, more, strict=True)],
        [f"{load:g}: quality {g * 100:+.1f}, attainment {m * 100:+.1f} points"
         for load, g, m in zip(middle, gains, more, strict=True)])  # fmt: skip
    low = loads[0]
    say(
        "lowest load: quality >= 0.99",
        [of(OURS, low, "mean_quality") >= 0.99],
        [f"{of(OURS, low, 'mean_quality'):.3f}"],
    )
    peak = max(of(OURS, load, "goodput") for load in loads)
    last = of(OURS, loads[-1], "goodput")
    say("highest load: goodput >= 0.9 of the peak", [last >= 0.9 * peak], [f"{last / peak:.2f}"])
    for where, span in REFUSED_IN:
        told = {load: cells[OURS, load][span] for load in loads}
        known = {load: seconds for load, seconds in told.items() if seconds is not None}
        say(f"refusals within 5 ms of {where} (p99)", [s <= 0.005 for s in known.values()],
            [f"{load:g}: {s * 1e3:.1f} ms" for load, s in known.items()])  # fmt: skip
    worst = {load: of(OURS, load, "worst_lateness_ratio") for load in loads}
    say("nothing served misses by more than 10 %", [w <= 1.1 for w in worst.values()],
        [f"{load:g}: {w:.2f}" for load, w in worst.items()])  # fmt: skip
    apart = [(abs(run["summary"]["attainment"] - run["simulated"]["attainment"]),
              abs((run["summary"]["mean_quality"] or 0) - (run["simulated"]["mean_quality"] or 0)))
             for run in document["runs"]]  # fmt: skip
    near = [a <= 0.05 and q <= 0.03 for a, q in apart]
    say("simulated within 5 points of attainment and 0.03 of quality", near,
        [f"largest {max(a for a, _ in apart) * 100:.1f} points, {max(q for _, q in apart):.3f}"])  # fmt: skip
    return lines


def _figure(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


if __name__ == "__main__":
    main()
