"""The picture of a replay: load, served quality and latency over one time axis, with all that went wrong marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepwell.serving.replay.outcomes import OUTCOMES, RequestResult

COLOURS = {
    "met": "#4c9f70",
    "missed": "#c62828",
    "shed": "#f0a830",
    "expired": "#b0651d",
    "cancelled": "#9e9e9e",
    "failed": "#4a148c",
}
_MARKS = {"missed": "x", "shed": "|", "expired": "|", "cancelled": "|", "failed": "D"}
_MOST_BINS = 60
_PER_BIN = 4
"""Requests of a bin, on average, at least."""
_LEGEND: Mapping[str, Any] = {
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 1.0),
    "fontsize": 8,
    "frameon": False,
    "borderaxespad": 0.2,
}
"""Above the axes, where nothing is drawn."""
_MEAN_OF = 25
"""Requests of the running mean of quality."""


def save_timeline(results: Sequence[RequestResult], path: Path, title: str) -> None:
    """Write the PNG. Every request stands where it was due to arrive."""
    ordered = sorted(results, key=lambda result: result.at_s)
    figure = Figure(figsize=(12.0, 8.5), layout="constrained")
    load, quality, latency = figure.subplots(3, 1, sharex=True, height_ratios=[1.0, 1.0, 1.3])
    _load(load, ordered)
    _quality(quality, ordered)
    _latency(latency, ordered)
    for axes in (load, quality, latency):
        axes.grid(True, alpha=0.3)
        axes.set_axisbelow(True)
    latency.set_xlabel("arrival, seconds")
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=110)


def _load(axes: Axes, results: Sequence[RequestResult]) -> None:
    """Arrivals per second, by what became of them."""
    span_s = max(results[-1].at_s, 1e-9)
    num_bins = max(1, min(_MOST_BINS, len(results) // _PER_BIN))
    width_s = span_s / num_bins
    names = [name for name in OUTCOMES if any(result.outcome == name for result in results)]
    times = [[result.at_s for result in results if result.outcome == name] for name in names]
    axes.hist(
        times,
        bins=[i * width_s for i in range(num_bins + 1)],
        weights=[[1.0 / width_s] * len(some) for some in times],
        stacked=True,
        color=[COLOURS[name] for name in names],
        label=[f"{name} ({len(some)})" for name, some in zip(names, times, strict=True)],
    )
    axes.set_ylabel("requests / s")
    axes.set_title("load, by what became of it", fontsize=10, loc="left")
    axes.legend(ncols=len(names), **_LEGEND)


def _quality(axes: Axes, results: Sequence[RequestResult]) -> None:
    """Of each request served, and the running mean; those not served as marks on the floor."""
    served = [result for result in results if result.served]
    times = [result.at_s for result in served]
    qualities = [result.quality for result in served]
    floor = min(qualities, default=0.0) - 0.04
    axes.plot(times, qualities, ".", ms=4, color="#90a4ae", alpha=0.6, label="each request")
    axes.plot(times, running_mean(qualities, _MEAN_OF), color="#0d47a1", lw=1.8, label=f"mean of {_MEAN_OF}")
    for name in ("shed", "expired", "failed"):
        where = [result.at_s for result in results if result.outcome == name]
        if where:
            axes.plot(where, [floor] * len(where), _MARKS[name], ms=7, color=COLOURS[name], label=name, ls="none")
    axes.set_ylabel("quality")
    axes.set_ylim(floor - 0.03, 1.03)
    axes.set_title("quality served, relative to the full model", fontsize=10, loc="left")
    axes.legend(ncols=5, **_LEGEND)


def _latency(axes: Axes, results: Sequence[RequestResult]) -> None:
    """Against what was asked where something was: 1 is the limit; else in seconds."""
    by_ratio = any(result.lateness_ratio is not None for result in results)
    unit = "latency / latency asked, worst token" if by_ratio else "latency, seconds"
    classes = sorted({result.slo_class for result in results})
    for number, name in enumerate(classes):
        some = [(r.at_s, _height(r, by_ratio)) for r in results if r.slo_class == name and r.outcome == "met"]
        some = [(at_s, height) for at_s, height in some if math.isfinite(height)]
        axes.plot([x for x, _ in some], [y for _, y in some], ".", ms=5, color=f"C{number}", label=f"{name}, met")
    missed = [(r.at_s, _height(r, by_ratio)) for r in results if r.outcome == "missed"]
    if missed:
        times, heights = [x for x, _ in missed], [y for _, y in missed]
        axes.plot(times, heights, _MARKS["missed"], ms=7, color=COLOURS["missed"], label="missed", ls="none")
    if by_ratio:
        axes.axhline(1.0, color="black", lw=1.0, ls="--")
    axes.set_yscale("log")
    axes.set_ylabel(unit)
    axes.set_title("latency of what was served", fontsize=10, loc="left")
    axes.legend(ncols=len(classes) + 1, **_LEGEND)


def _height(result: RequestResult, by_ratio: bool) -> float:
    """Where it is drawn; nan = nowhere."""
    if not by_ratio:
        return result.total_s
    return math.nan if result.lateness_ratio is None else result.lateness_ratio


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and those before it, ``width`` of them at most."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        means.append(total / min(i + 1, width))
    return means
