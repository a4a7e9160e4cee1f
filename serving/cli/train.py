"""Train models whose levels are sub-networks of one set of weights.

stepwell train nested: sorted (nested) training of a decoder on text, by default the recipe of the shipped nested-lm on
the source and documentation of Python's standard library. Writes checkpoints and, at the end, a model directory whose
ladders carry the quality measured on held-out files.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli.output import CommandError, add_json_option, print_json, say

if TYPE_CHECKING:
    from stepwell.models.training.config import NestedConfig
    from stepwell.models.training.progress import Progress

HELP = "train a nested model"
_SAY_EVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell train``."""
    recipes = parser.add_subparsers(dest="training", metavar="TRAINING", required=True)
    nested = recipes.add_parser("nested", help="sorted training of a decoder: every depth x FFN width is usable")
    nested.add_argument(
        "--out", type=Path, default=Path("runs/nested-lm"), metavar="DIR", help="what is written (default %(default)s)"
    )
    nested.add_argument(
        "--sources", type=Path, metavar="DIR", help="text files to learn (default: Python's standard library)"
    )
    nested.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    nested.add_argument("--seed", type=int, metavar="N", help="of the weights and the order of the text")
    nested.add_argument(
        "--recipe",
        type=Path,
        metavar="F",
        help="JSON object of recipe fields that differ from nested-lm's (its evaluation.json holds a whole recipe)",
    )
    nested.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    add_json_option(nested)


def run(args: argparse.Namespace) -> None:
    """Train, measure, write. Raises ValueError or CommandError."""
    from stepwell.models.ladder import LADDER_FILE
    from stepwell.models.training.checkpoint import CHECKPOINT_FOLDER
    from stepwell.models.training.nested import train

    config = _config(args)
    if (config.output / CHECKPOINT_FOLDER).exists() and not args.resume:
        raise CommandError(f"--out: {config.output} holds a checkpoint; add --resume to go on, or choose another")
    started = time.monotonic()
    say(f"reading text; the run is written to {config.output}")
    model = train(config, _Reporter())
    seconds = time.monotonic() - started
    if args.json:
        ladders = json.loads((model / LADDER_FILE).read_text(encoding="utf-8"))
        print_json({"model": str(model), "seconds": seconds, "recipe": config.to_json(), "ladders": ladders})
    else:
        print(f"wrote {model} after {seconds:.0f} s; see its operating points with: stepwell ladder {model}")


def _config(args: argparse.Namespace) -> NestedConfig:
    from stepwell.models.training.config import NestedConfig

    document = {**NestedConfig(args.out).to_json(), **_recipe(args.recipe)}
    if args.steps is not None:
        document["num_steps"] = args.steps
    if args.seed is not None:
        document["seed"] = args.seed
    try:
        return NestedConfig.from_json(document, args.out, args.sources)
    except TypeError as error:
        raise CommandError(f"--recipe: a field of {args.recipe} has the wrong type ({error}); correct it") from error


def _recipe(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"--recipe: {path} is not readable as JSON ({error}); correct it") from error
    if not isinstance(document, dict):
        raise CommandError(f"--recipe: {path} holds no JSON object; write the fields that differ between braces")
    return document


class _Reporter:
    """Says how training goes, every few seconds and at the end."""

    def __init__(self) -> None:
        self._said_s = 0.0

    def __call__(self, progress: Progress) -> None:
        now, last = time.monotonic(), progress.step == progress.num_steps
        if last or now - self._said_s >= _SAY_EVERY_S:
            self._said_s = now
            say(str(progress))
        if last:
            say("measuring every sub-network on the held-out files ...")
