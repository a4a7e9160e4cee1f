"""Show a model's operating points: what each one runs, what it costs, and how good it is.

Cost is the share of the full model's parameters that run for each token. Quality is relative to the full model, as
measured when the ladder was made. Milliseconds are predicted from the model's profile, if this machine has one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli.output import add_json_option, millions, print_json, table

if TYPE_CHECKING:
    from stepwell.models.ladder import Ladder, Level
    from stepwell.models.loader import ModelFiles
    from stepwell.schedulers.request import OperatingPoint

HELP = "show a model's operating points"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell ladder``."""
    parser.add_argument("model", metavar="MODEL", help="a directory, a hub id, or a shipped model such as nested-lm")
    parser.add_argument("--threads", type=int, metavar="N", help="of whose profile: threads of one model operation")
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Print the operating points, grouped by ladder. Raises ValueError if the model cannot be opened."""
    document = describe(args.model, args.threads)
    if args.json:
        print_json(document)
    else:
        print(_text(document))


def describe(model: str, threads: int | None = None) -> dict[str, Any]:
    """The document of ``--json``; predictions are those of the profile made with so many ``threads`` (None = what torch
    chooses), null without one. Raises ValueError if the model cannot be opened."""
    from stepwell.models.loader import read_files
    from stepwell.serving.engine.points import operating_points
    from stepwell.serving.hosted import context_length, task_of, unit_parameters
    from stepwell.serving.point_costs import columns_of

    files = read_files(model)
    ladders, units = files.ladders, unit_parameters(files.config)
    points = operating_points(ladders, units)
    costs = _predicted(files, points, threads)

    def of_ladder(ladder: Ladder) -> dict[str, Any]:
        named = [(points[ladder.point_name(k)], level) for k, level in enumerate(ladder.levels)]
        return {
            "name": ladder.name,
            "kv": ladder.kv,
            "points": [
                _point(point, level, units.of(level.subnet)) | {"predicted": costs.get(point.name)}
                for point, level in named
            ],
        }

    return {
        "model": files.name,
        "task": task_of(files),
        "parameters": units.of(ladders.architecture.full),
        "context_length": context_length(files.config),
        "quality_metric": dict(ladders.quality_metric),
        "default_ladder": ladders.default,
        "predictions": {"about": columns_of(files).about, "columns": columns_of(files).names},
        "ladders": [of_ladder(ladder) for ladder in ladders.ladders.values()],
    }


def _predicted(
    files: ModelFiles, points: Mapping[str, OperatingPoint], threads: int | None
) -> dict[str, dict[str, float]]:
    """Milliseconds by operating point (see :mod:`~stepwell.serving.point_costs`); none without profile."""
    from stepwell.serving.config import ModelConfig
    from stepwell.serving.point_costs import columns_of
    from stepwell.serving.precision import run_dtype
    from stepwell.serving.profiles import load_profile, profile_key

    config = ModelConfig(files.name)
    key = profile_key(files.path, run_dtype(config, files.config.dtype), config.packed_weights_ratio)
    profile = load_profile(key if threads is None else replace(key, threads=threads))
    if profile is None:
        return {}
    model = profile.cost_model(files.ladders)
    columns = columns_of(files)
    return {name: columns.costs(model, point) for name, point in points.items()}


def _point(point: OperatingPoint, level: Level, parameters: int) -> dict[str, Any]:
    return {
        "name": point.name,
        "layers": level.subnet.depth,
        "kv_groups": list(level.subnet.kv_groups),
        "ffn_channels": list(level.subnet.ffn_channels),
        "parameters": parameters,
        "token_budget": point.token_budget,
        "cost": point.cost,
        "quality": point.quality,
        "metric": level.metric,
    }


def _text(document: dict[str, Any]) -> str:
    metric = document["quality_metric"]
    name = metric.get("name", "metric")
    size = f"{millions(document['parameters'])} parameters run for each token at full size"
    context = f"; context {document['context_length']} tokens" if document["context_length"] else ""
    lines = [f"{document['model']} ({document['task']}): {size}{context}"]
    if "data" in metric:
        lines.append(f"quality: from {name} ({metric.get('better', '?')} is better), {metric['data']}")
    lines.append(_about_costs(document))
    for ladder in document["ladders"]:
        default = ", the default" if ladder["name"] == document["default_ladder"] else ""
        cache = f"cache across levels: {ladder['kv']}" if document["task"] == "generate" else "nested"
        lines += ["", f"ladder {ladder['name']} ({cache}{default})"]
        lines.append(_ladder_table(ladder["points"], name, document["predictions"]["columns"]))
    return "\n".join(lines)


def _about_costs(document: dict[str, Any]) -> str:
    if document["ladders"][0]["points"][0]["predicted"] is None:
        return f"milliseconds: none measured on this machine; 'stepwell profile {document['model']}' does"
    about: str = document["predictions"]["about"]
    return about


def _ladder_table(points: Sequence[dict[str, Any]], metric: str, columns: Mapping[str, str]) -> str:
    has_costs = any(point["predicted"] for point in points)
    headers = ["point", "layers", "head groups", "FFN channels", "parameters", "of full", "quality", metric]
    headers += columns.values() if has_costs else ()
    rows = [
        [
            point["name"],
            str(point["layers"]),
            units(point["kv_groups"]),
            units(point["ffn_channels"]),
            millions(point["parameters"]),
            f"{point['cost']:.1%}",
            f"{point['quality']:.3f}",
            "-" if point["metric"] is None else f"{point['metric']:.3f}",
            *(f"{point['predicted'][key]:.2f}" for key in (columns if has_costs else ())),
        ]
        for point in points
    ]
    return table(headers, rows, left=["point"])


def units(per_layer: Sequence[int]) -> str:
    """Units of the layers that have any: one number if all have the same, else the range and how many have some."""
    used = [count for count in per_layer if count]
    if not used:
        return "none"
    span = str(used[0]) if min(used) == max(used) else f"{min(used)}-{max(used)}"
    last = max(i for i, count in enumerate(per_layer) if count)
    return span if len(used) == last + 1 else f"{span} in {len(used)} layers"
