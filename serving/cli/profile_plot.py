"""The picture of a profile: what quality costs on each ladder, and the measured curves of the units."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepwell.models.unit_profile import UnitProfile
from stepwell.serving.predictor_costs import PointCurves
from stepwell.serving.profiles import AnyProfile, PredictorProfile


def save_plot(document: Mapping[str, Any], profile: AnyProfile, path: Path) -> None:
    """Write the PNG. ``document`` is that of ``stepwell profile --json``."""
    figure = Figure(figsize=(13.0, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _ladders(left, document)
    if isinstance(profile, PredictorProfile):
        _batches(right, profile.curves, document)
    else:
        _units(right, profile.units)
    figure.suptitle(f"{document['model']}, {document['dtype']}, {document['threads']} threads, {document['device']}")
    figure.savefig(path, dpi=110)


def _ladders(axes: Axes, document: Mapping[str, Any]) -> None:
    for ladder in document["ladders"]:
        is_default = ladder["name"] == document["default_ladder"]
        seconds = [point[document["compared"]] for point in ladder["points"]]
        qualities = [point["quality"] for point in ladder["points"]]
        label = f"{ladder['name']}, the default" if is_default else ladder["name"]
        width, colour = (2.2, "black") if is_default else (1.0, None)
        axes.plot(seconds, qualities, marker=".", label=label, lw=width, color=colour, zorder=2 + is_default)
    axes.set(xlabel=f"ms of a step: {document['compared_label']}", ylabel="quality")
    axes.set(xlim=(0, None), title="what quality costs")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)


def _batches(axes: Axes, curves: PointCurves, document: Mapping[str, Any]) -> None:
    """A line a point, over the items of a batch."""
    colours = colormaps["viridis"]
    for number, (name, seconds) in enumerate(sorted(curves.seconds.items())):
        items = [tokens / curves.num_tokens[0] for tokens in curves.num_tokens]
        colour = colours(number / max(len(curves.seconds) - 1, 1))
        axes.loglog(items, [1e3 * each for each in seconds], marker=".", color=colour, label=name)
    axes.set(xlabel="items in the step", ylabel="milliseconds", title=f"measured: {document['default_ladder']}")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)


def _units(axes: Axes, units: UnitProfile) -> None:
    """A line a unit, over the rows it runs on; both axes logarithmic."""
    colours = colormaps["YlGnBu"]
    for number, (channels, seconds) in enumerate(sorted(units.ffn_s.items())):
        colour = colours(0.3 + 0.6 * number / max(len(units.ffn_s) - 1, 1))
        axes.loglog(units.rows, [1e6 * each for each in seconds], marker=".", color=colour, label=f"FFN {channels}")
    for groups, seconds in sorted(units.attention_s.items()):
        label = f"projections of {groups} head group{'s' if groups > 1 else ''}"
        axes.loglog(units.rows, [1e6 * each for each in seconds], marker=".", ls="--", label=label)
    axes.loglog(units.rows, [1e6 * each for each in units.output_s], marker=".", ls=":", color="grey", label="head")
    axes.set(xlabel="tokens in the step", ylabel="microseconds (of one layer)", title="measured units")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
