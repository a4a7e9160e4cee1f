"""Measure what a model costs on this machine, keep it for the server, and show cost against quality.

Units are measured (projections, FFN slices, attention, head), not batches; from them every step is predicted. A server
that finds the profile of its model, precision and number of threads does not measure. This command always does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli.output import UsageError, add_json_option, print_json, say, table

if TYPE_CHECKING:
    from stepwell.models.ladder import Ladder
    from stepwell.models.loader import ModelFiles
    from stepwell.models.profiler import Progress
    from stepwell.schedulers.request import OperatingPoint
    from stepwell.serving.config import ModelConfig
    from stepwell.serving.profiles import AnyProfile

HELP = "measure what a model's operating points cost on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell profile``."""
    parser.add_argument("model", metavar="MODEL", help="a directory, a hub id, or a shipped model such as nested-lm")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of one model operation, as the server's")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="as the server's")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw cost against quality, and the units, as PNG")
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, keep, print, plot. Raises ValueError if the model cannot be opened."""
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads: must be >= 1, got {args.threads}; give a number of threads")
    import torch

    from stepwell.models.loader import read_files
    from stepwell.serving.config import ModelConfig
    from stepwell.serving.profiles import save_profile

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = ModelConfig(args.model, dtype=args.dtype)
    files = read_files(args.model)
    profile, points = _measure(config, files)
    say(f"measured in {profile.measured_in_s:.1f} s with {profile.key.threads} threads")
    path = save_profile(profile)
    if path is not None:
        say(f"kept as {path}")
    document = describe(files, profile, points) | {"path": None if path is None else str(path)}
    if args.plot is not None:
        from stepwell.serving.cli.profile_plot import save_plot

        args.plot.parent.mkdir(parents=True, exist_ok=True)
        save_plot(document, profile, args.plot)
        say(f"plot: {args.plot}")
    if args.json:
        print_json(document)
    else:
        print(_text(document))


def _measure(config: ModelConfig, files: ModelFiles) -> tuple[AnyProfile, Mapping[str, OperatingPoint]]:
    """A new profile, and the model's operating points."""
    from stepwell.models.config import DecoderConfig
    from stepwell.serving.decoder_hosting import prepare
    from stepwell.serving.predictor_hosting import measure_predictor, prepare_predictor
    from stepwell.serving.profiles import measure_profile, profile_key

    if isinstance(files.config, DecoderConfig):
        loaded, cache, points = prepare(config, files)
        key = profile_key(files.path, loaded.decoder.dtype, config.packed_weights_ratio)
        return measure_profile(loaded, points, cache, key, _progress()), points
    predictor = prepare_predictor(config, files)
    key = profile_key(files.path, predictor.model.dtype, config.packed_weights_ratio)
    return measure_predictor(config, predictor, key, _progress()), predictor.points


def describe(files: ModelFiles, profile: AnyProfile, points: Mapping[str, OperatingPoint]) -> dict[str, Any]:
    """The document of ``--json``."""
    from stepwell.serving.point_costs import columns_of

    model, columns = profile.cost_model(files.ladders), columns_of(files)

    def of_ladder(ladder: Ladder) -> dict[str, Any]:
        levels = [points[ladder.point_name(k)] for k in range(len(ladder.levels))]
        described = [{"name": p.name, "quality": p.quality, "cost": p.cost, **columns.costs(model, p)} for p in levels]
        return {"name": ladder.name, "points": described}

    return {
        "model": files.name,
        "device": profile.key.device,
        "dtype": profile.key.dtype,
        "threads": profile.key.threads,
        "measured_in_s": profile.measured_in_s,
        "about": columns.about,
        "columns": columns.names,
        "compared": columns.compared,
        "compared_label": columns.compared_label,
        "default_ladder": files.ladders.default,
        "ladders": [of_ladder(ladder) for ladder in files.ladders.ladders.values()],
    }


def _text(document: dict[str, Any]) -> str:
    columns = document["columns"]
    lines = [
        f"{document['model']} in {document['dtype']} with {document['threads']} threads on {document['device']}",
        document["about"],
    ]
    headers = ["point", "quality", "of full", *columns.values()]
    for ladder in document["ladders"]:
        default = " (the default)" if ladder["name"] == document["default_ladder"] else ""
        rows = _rows(ladder["points"], list(columns))
        lines += ["", f"ladder {ladder['name']}{default}", table(headers, rows, left=["point"])]
    return "\n".join(lines)


def _rows(points: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[str]]:
    return [[p["name"], f"{p['quality']:.3f}", f"{p['cost']:.1%}", *(f"{p[key]:.2f}" for key in keys)] for p in points]


def _progress() -> Progress:
    """A line on standard error that counts up in place; nothing where nobody watches."""
    watched = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if watched and (done % 20 == 0 or total < 100):
            print(f"\rmeasuring {100 * done // total:3d} %", end="", file=sys.stderr, flush=True)

    return progress
