"""The demonstration's picture: what each request got, beside what the model offers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stepwell.serving.cli.demo_run import Answer, Outcome
from stepwell.serving.cli.output import excerpt

_COLOURS = colormaps["YlGnBu"]
_LIGHTEST, _DARKEST = 0.22, 0.85
"""The part of the colours that is used: neither the paper's white nor too dark to read on."""
_LATE, _GREY = "#c62828", "#9e9e9e"


def save_plot(outcome: Outcome, path: Path) -> None:
    """Write the PNG: latencies with their deadlines on the left, the ladders' quality over cost on the right."""
    figure = Figure(figsize=(14.0, 3.0 + 0.24 * len(outcome.answers)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.45, 1.0])
    qualities = [point.quality for ladder in outcome.model.ladders for point in ladder.points]
    scale = Normalize(min(qualities) - 1e-6, max(qualities))
    _latencies(left, outcome, scale)
    _offers(right, outcome, scale)
    figure.suptitle(
        f"{len(outcome.answers)} requests at once, one {outcome.model.name}: "
        f"{outcome.num_served} sub-networks served, up to {outcome.most_in_step} of them in one step",
        fontsize=13,
    )
    figure.savefig(path, dpi=110)


def _latencies(axes: Axes, outcome: Outcome, scale: Normalize) -> None:
    """A bar a request; best quality on top, those not served at the bottom."""
    order = sorted(range(len(outcome.answers)), key=lambda n: (_quality(outcome.answers[n]), -n))
    longest = max(answer.client_ms for answer in outcome.answers)
    limit = 1.22 * longest
    for row, number in enumerate(order):
        _bar(axes, row, outcome.answers[number], outcome, scale, limit)
    axes.set_yticks(range(len(order)), [_label(n, outcome.answers[n]) for n in order], fontsize=7.5, family="monospace")
    axes.set(xlim=(0, limit), ylim=(-0.8, len(order) - 0.2), xlabel="milliseconds since arrival at the server")
    axes.set_title("what each request got", fontsize=11)
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    handles = [
        Line2D([], [], marker="o", color="none", markerfacecolor="white", markeredgecolor="black", label="first token"),
        Line2D([], [], marker="|", ms=11, mew=2.5, color="black", ls="none", label="due: first token, last token"),
        Line2D([], [], marker="|", ms=11, mew=2.5, color=_LATE, ls="none", label="due, and late"),
    ]
    axes.legend(handles=handles, loc="lower right", fontsize=8)


def _bar(axes: Axes, row: int, answer: Answer, outcome: Outcome, scale: Normalize, limit: float) -> None:
    report = answer.report
    if report is None:
        axes.barh(row, answer.client_ms, height=0.7, color="none", edgecolor=_GREY, hatch="////", linewidth=0.6)
        axes.text(answer.client_ms + 0.01 * limit, row, answer.outcome, va="center", fontsize=7.5, color=_LATE)
        return
    axes.barh(row, report.total_ms, height=0.7, color=_colour(report.quality, scale))
    if report.ttft_ms is not None:
        axes.plot(report.ttft_ms, row, "o", ms=4.5, markerfacecolor="white", markeredgecolor="black", mew=0.7)
    first_due_ms = answer.wish.first_due_ms(outcome.classes)
    first_late = first_due_ms is not None and report.ttft_ms is not None and report.ttft_ms > first_due_ms
    if first_due_ms is not None and first_due_ms < limit:
        _deadline(axes, row, first_due_ms, first_late, limit)
    due_ms = answer.wish.due_ms(outcome.classes, report.generated_tokens)
    if due_ms is not None:
        late = report.total_ms > due_ms or not (report.slo_met or first_late)
        _deadline(axes, row, due_ms, late, limit)


def _deadline(axes: Axes, row: int, due_ms: float, late: bool, limit: float) -> None:
    """A mark where it was due; at the edge, in words, if that is further right."""
    colour = _LATE if late else "black"
    if due_ms < limit:
        axes.plot(due_ms, row, "|", ms=11, mew=2.5, color=colour)
    else:
        axes.text(0.995 * limit, row, f"{due_ms / 1e3:.1f} s \u2192", va="center", ha="right", fontsize=7, color=colour)


def _label(number: int, answer: Answer) -> str:
    point = answer.report.operating_point if answer.report else "-"
    return f"#{number:<2}  {excerpt(answer.wish.prompt, 24):<24}  {point:>12}"


def _quality(answer: Answer) -> float:
    return answer.report.quality if answer.report else 0.0


def _colour(quality: float, scale: Normalize) -> tuple[float, float, float, float]:
    """Darker is better."""
    return _COLOURS(_LIGHTEST + (_DARKEST - _LIGHTEST) * float(scale(quality)))


def _offers(axes: Axes, outcome: Outcome, scale: Normalize) -> None:
    """Quality over cost of all ladders; circles where requests were served."""
    points = {}
    for ladder in outcome.model.ladders:
        points.update({point.name: point for point in ladder.points})
        is_default = ladder.name == outcome.model.default_ladder
        costs, qualities = [p.cost for p in ladder.points], [p.quality for p in ladder.points]
        label = f"ladder {ladder.name}, the default" if is_default else None
        colour, width = ("black", 1.6) if is_default else (_GREY, 0.9)
        axes.plot(costs, qualities, marker=".", ms=4, label=label, color=colour, lw=width, zorder=1 + is_default)
    served = Counter(a.report.operating_point for a in outcome.answers if a.report is not None)
    for name, count in served.items():
        point = points[name]
        where, size = (point.cost, point.quality), 50.0 + 45.0 * min(count, 8)
        axes.scatter(*where, s=size, color=_colour(point.quality, scale), edgecolors="black", lw=0.8, zorder=3)
        if count > 1:
            axes.annotate(str(count), where, ha="center", va="center", fontsize=8, color="white", zorder=4)
    axes.plot([], [], color=_GREY, lw=0.9, marker=".", ms=4, label="the other ladders")
    axes.plot([], [], "o", markerfacecolor="white", markeredgecolor="black", label="served (number if several)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlim(right=1.05)
    axes.set(xlabel="parameters run for each token, of the full model's", ylabel="quality relative to the full model")
    axes.set_title("what the model offers, and where they were served", fontsize=11)
    axes.grid(True, alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
