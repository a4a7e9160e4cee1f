"""Train models whose levels are sub-networks of one set of weights, or run fewer tokens.

stepwell train nested: sorted (nested) training of a decoder on text, by default the recipe of the shipped nested-lm on
the source and documentation of Python's standard library.

stepwell train routed: token routing and slimming of a vision transformer on drawn scenes, the recipe of routed-vit.
stepwell train supernet: sorted training of a vision transformer on the same scenes, the recipe of nested-vit.

Each writes checkpoints and, at the end, a model directory whose ladders carry the quality measured on held-out data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stepwell.serving.cli.output import CommandError, add_json_option, print_json, say

if TYPE_CHECKING:
    from stepwell.models.training.config import NestedConfig
    from stepwell.models.training.vision.config import DenseConfig

HELP = "train a model with many operating points"
_SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class _Training:
    """One recipe: its configuration and the function that runs it are imported when it is asked for."""

    model: str
    """The shipped model that the default recipe makes."""
    config: str
    """``module:Class``."""
    module: str
    """Has ``train(config, progress) -> model directory``."""
    help: str


_PACKAGE = "stepwell.models.training"
_TRAININGS = {
    "nested": _Training(
        "nested-lm",
        f"{_PACKAGE}.config:NestedConfig",
        f"{_PACKAGE}.nested",
        "sorted training of a decoder: every depth x FFN width is usable",
    ),
    "routed": _Training(
        "routed-vit",
        f"{_PACKAGE}.vision.config:RoutedConfig",
        f"{_PACKAGE}.vision.routed",
        "gates and slimming modules of a vision transformer: every token budget is usable",
    ),
    "supernet": _Training(
        "nested-vit",
        f"{_PACKAGE}.vision.config:SupernetConfig",
        f"{_PACKAGE}.vision.supernet",
        "sorted training of a vision transformer: every depth x FFN width x number of heads is usable",
    ),
}


class _Progress(Protocol):
    @property
    def step(self) -> int: ...

    @property
    def num_steps(self) -> int: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell train``."""
    recipes = parser.add_subparsers(dest="training", metavar="TRAINING", required=True)
    for name, training in _TRAININGS.items():
        recipe = recipes.add_parser(name, help=training.help)
        out = Path("runs") / training.model
        recipe.add_argument(
            "--out", type=Path, default=out, metavar="DIR", help="what is written (default %(default)s)"
        )
        if name == "nested":
            text = "text files to learn (default: Python's standard library)"
            recipe.add_argument("--sources", type=Path, metavar="DIR", help=text)
        recipe.add_argument("--steps", type=int, metavar="N", help="optimiser steps (routed: of the last stage)")
        recipe.add_argument("--seed", type=int, metavar="N", help="of the weights and the order of the data")
        recipe.add_argument(
            "--recipe",
            type=Path,
            metavar="F",
            help=f"JSON object of recipe fields that differ from {training.model}'s (its evaluation.json holds a "
            "whole recipe)",
        )
        recipe.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
        add_json_option(recipe)


def run(args: argparse.Namespace) -> None:
    """Train, measure, write. Raises ValueError or CommandError."""
    from stepwell.models.ladder import LADDER_FILE

    config = _config(args)
    train = import_module(_TRAININGS[args.training].module).train
    _check_unused(config.output, args.resume)
    started = time.monotonic()
    say(f"preparing data; the run is written to {config.output}")
    model = train(config, _Reporter())
    seconds = time.monotonic() - started
    if args.json:
        ladders = json.loads((model / LADDER_FILE).read_text(encoding="utf-8"))
        print_json({"model": str(model), "seconds": seconds, "recipe": config.to_json(), "ladders": ladders})
    else:
        print(f"wrote {model} after {seconds:.0f} s; see its operating points with: stepwell ladder {model}")


def _check_unused(output: Path, resume: bool) -> None:
    from stepwell.models.training.checkpoint import CHECKPOINT_FOLDER

    if not resume and any(output.glob(f"**/{CHECKPOINT_FOLDER}")):
        raise CommandError(f"--out: {output} holds a checkpoint; add --resume to go on, or choose another")


def _config(args: argparse.Namespace) -> NestedConfig | DenseConfig:
    module, _, name = _TRAININGS[args.training].config.partition(":")
    kind = getattr(import_module(module), name)
    document = {**kind(args.out).to_json(), **_recipe(args.recipe)}
    if args.steps is not None:
        document["num_steps"] = args.steps
    if args.seed is not None:
        document["seed"] = args.seed
    sources = {"sources": args.sources} if args.training == "nested" else {}
    from_json: Callable[..., NestedConfig | DenseConfig] = kind.from_json
    try:
        return from_json(document, args.out, **sources)
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

    def __call__(self, progress: _Progress) -> None:
        now, last = time.monotonic(), progress.step == progress.num_steps
        if last or now - self._said_s >= _SAY_EVERY_S:
            self._said_s = now
            say(str(progress))
        if last:
            say("measuring on held-out data, if this was the last stage ...")
