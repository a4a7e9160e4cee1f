"""Measure what a model costs on this machine, keep it for the server, and show cost against quality.

Units are measured (projections, FFN slices, attention, head), not batches; from them every step is predicted. A server
that finds the profile of its model, precision and number of threads does not measure. This command always does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli.output import UsageError, add_json_option, print_json, say, table

if TYPE_CHECKING:
    from stepwell.models.loader import LoadedModel
    from stepwell.models.profiler import Progress
    from stepwell.schedulers.request import OperatingPoint
    from stepwell.serving.profiles import Profile

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

    from stepwell.serving.config import ModelConfig
    from stepwell.serving.decoder_hosting import prepare
    from stepwell.serving.profiles import measure_profile, profile_key, save_profile

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = ModelConfig(args.model, dtype=args.dtype)
    loaded, cache, points = prepare(config)
    key = profile_key(loaded.path, loaded.decoder.dtype, config.packed_weights_ratio)
    profile = measure_profile(loaded, points, cache, key, _progress())
    say(f"measured in {profile.measured_in_s:.1f} s with {key.threads} threads")
    path = save_profile(profile)
    if path is not None:
        say(f"kept as {path}")
    document = describe(loaded, profile, points) | {"path": None if path is None else str(path)}
    if args.plot is not None:
        from stepwell.serving.cli.profile_plot import save_plot

        args.plot.parent.mkdir(parents=True, exist_ok=True)
        save_plot(document, profile.units, args.plot)
        say(f"plot: {args.plot}")
    if args.json:
        print_json(document)
    else:
        print(_text(document))


def describe(loaded: LoadedModel, profile: Profile, points: Mapping[str, OperatingPoint]) -> dict[str, Any]:
    """The document of ``--json``."""
    from stepwell.serving.point_costs import CONTEXT, PROMPT_TOKENS, TOGETHER, point_cost

    model = profile.cost_model(loaded.ladders)

    def of_ladder(name: str) -> list[dict[str, Any]]:
        levels = [points[f"{name}:{k}"] for k in range(len(loaded.ladders.ladders[name].levels))]
        return [{"name": p.name, "quality": p.quality, "cost": p.cost, **asdict(point_cost(model, p))} for p in levels]

    return {
        "model": loaded.name,
        "device": profile.key.device,
        "dtype": profile.key.dtype,
        "threads": profile.key.threads,
        "measured_in_s": profile.measured_in_s,
        "context": CONTEXT,
        "prompt_tokens": PROMPT_TOKENS,
        "together": TOGETHER,
        "default_ladder": loaded.ladders.default,
        "ladders": [{"name": name, "points": of_ladder(name)} for name in loaded.ladders.ladders],
    }


def _text(document: dict[str, Any]) -> str:
    from stepwell.serving.point_costs import HEADERS

    context, together, prompt = (document[name] for name in ("context", "together", "prompt_tokens"))
    lines = [
        f"{document['model']} in {document['dtype']} with {document['threads']} threads on {document['device']}",
        f"predicted steps: 1 and {together} sequences that decode over {context} tokens; a prompt of {prompt}",
    ]
    headers = ["point", "quality", "of full", *HEADERS]
    for ladder in document["ladders"]:
        default = " (the default)" if ladder["name"] == document["default_ladder"] else ""
        lines += ["", f"ladder {ladder['name']}{default}", table(headers, _rows(ladder["points"]), left=["point"])]
    return "\n".join(lines)


def _rows(points: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    from stepwell.serving.point_costs import cells

    return [[p["name"], f"{p['quality']:.3f}", f"{p['cost']:.1%}", *cells(p)] for p in points]


def _progress() -> Progress:
    """A line on standard error that counts up in place; nothing where nobody watches."""
    watched = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if watched and done % 20 == 0:
            print(f"\rmeasuring {100 * done // total:3d} %", end="", file=sys.stderr, flush=True)

    return progress
