"""The picture of a simulation: how policies hold up as the load grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepwell.serving.replay.outcomes import Summary

_STYLES = (
    ("#0072b2", "o", "-"),
    ("#d55e00", "s", "--"),
    ("#009e73", "^", "-."),
    ("#cc79a7", "D", ":"),
    ("#e69f00", "v", (0, (5, 1))),
    ("#56b4e9", "P", (0, (3, 1, 1, 1))),
    ("#000000", "X", (0, (1, 1))),
)
"""Colours that most colour-blind people tell apart (Okabe and Ito 2008); marker and dashes say the same again."""
_LINE: Mapping[str, Any] = {"lw": 1.8, "ms": 8.0, "mfc": "none", "mew": 1.6}
"""Hollow markers: lines that coincide still show."""
_PANELS: tuple[tuple[str, Callable[[Summary], float | None]], ...] = (
    ("SLO attainment: met, of all sent", lambda summary: summary.attainment),
    ("mean quality of what was served", lambda summary: summary.mean_quality),
    ("goodput: quality-weighted met, 1/s", lambda summary: summary.goodput),
)


def save_plot(path: Path, title: str, runs: Mapping[str, Sequence[tuple[float, Summary]]]) -> None:
    """Write a PNG: attainment, mean quality and goodput against load, a line a policy (``runs``: load and summary)."""
    figure = Figure(figsize=(14.0, 4.8), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for axes, (label, value) in zip(panels, _PANELS, strict=True):
        for number, (policy, points) in enumerate(runs.items()):
            colour, marker, dashes = _STYLES[number % len(_STYLES)]
            loads = [load for load, _ in points]
            values = [float("nan") if (y := value(summary)) is None else y for _, summary in points]
            axes.plot(loads, values, color=colour, marker=marker, ls=dashes, label=policy, **_LINE)
        _dress(axes, label, [load for points in runs.values() for load, _ in points])
    panels[0].set_ylim(-0.02, 1.02)
    panels[2].set_ylim(bottom=0.0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), frameon=False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=110)


def _dress(axes: Axes, label: str, loads: Sequence[float]) -> None:
    axes.set_title(label, fontsize=11)
    axes.set_xticks(sorted(set(loads)), [f"{load:g}" for load in sorted(set(loads))])
    axes.set_xlabel("load (1 = capacity at full quality)")
    axes.grid(True, alpha=0.3)
    if min(loads) < 1.0 < max(loads):
        axes.axvline(1.0, color="#9e9e9e", lw=0.8, zorder=0)
