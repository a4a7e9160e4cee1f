"""The options of ``stepwell bench``, and the workload they describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stepwell.serving.cli.output import UsageError

if TYPE_CHECKING:
    from stepwell.serving.config import SLOClass
    from stepwell.serving.replay.workload import Workload

DEFAULT_REQUESTS = 300
_MOST_REQUESTS = 100_000
"""Made up for ``--duration`` alone."""


def add_workload(group: argparse._ActionsContainer) -> None:
    """What is sent."""
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="F", help="Azure CSV or Mooncake JSON lines")
    source.add_argument("--synthetic", metavar="KIND:...", help="e.g. poisson:rate=5 or gamma:rate=5,cv=4,prompt=200")
    rate = group.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=positive, metavar="R", help="stretch time so that R requests a second arrive")
    rate.add_argument("--load", type=positive, metavar="X", help="the same, to X times --capacity")
    group.add_argument("--capacity", type=positive, metavar="R", help="requests/s that are load 1 (default: simulate)")
    group.add_argument("--start", type=float, default=0.0, metavar="S", help="skip the first S seconds of the trace")
    group.add_argument(
        "--requests", type=int, metavar="N", help=f"take N (default {DEFAULT_REQUESTS}, or all of --duration)"
    )
    group.add_argument("--duration", type=positive, metavar="S", help="stop sending after S seconds")
    group.add_argument(
        "--slo-class",
        action="append",
        type=share,
        metavar="NAME:SHARE",
        help="mix of classes; give it once for each (default: all classes with a latency, in equal shares)",
    )
    group.add_argument("--images", type=Path, metavar="DIR", help="PNG and JPEG files to send (default: noise)")
    group.add_argument(
        "--image-size", type=_size, metavar="HxW", help="of noise, for a model that leaves it open (default: ask)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of load, classes and noise (default 0)")


def add_target(group: argparse._ActionsContainer) -> None:
    """To whom, and how."""
    group.add_argument("--address", metavar="HOST:PORT", help="a running server (default: start one)")
    group.add_argument("--model", default="nested-lm", metavar="NAME", help="default %(default)s")
    group.add_argument("--config", metavar="F", help="the server's YAML: here for its slo_classes")
    group.add_argument("--slo-as", choices=("class", "numbers", "none"), default="class", help="how the SLO is told")
    group.add_argument("--unary", action="store_true", help="ask for whole answers: no stream, less work on both sides")
    group.add_argument("--timeout", type=positive, default=60.0, metavar="S", help="of each request (default 60)")
    group.add_argument("--connections", type=int, default=4, metavar="N", help="default %(default)s")
    group.add_argument(
        "--quality", type=_fraction, default=1.0, metavar="Q", help="of a server that reports none (default 1.0)"
    )
    group.add_argument("--vocab", type=int, metavar="N", help="token ids of prompts lie below (default: ask, or 256)")
    group.add_argument("--context", type=int, metavar="N", help="scale lengths to fit N tokens (default: ask)")


def add_server(group: argparse._ActionsContainer) -> None:
    """The server started without ``--address``."""
    group.add_argument("--policy", metavar="NAME", help="scheduling policy")
    group.add_argument("--threads", type=int, metavar="N", help="threads of one model operation")


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for options that contradict each other."""
    if args.load and args.address and not args.capacity:
        raise UsageError("--load: of a server at --address needs --capacity, its requests/s at load 1; or give --rate")
    if args.address and (args.policy or args.threads):
        raise UsageError("--policy, --threads: belong to a server started here; leave them or --address out")
    for name in ("requests", "connections", "vocab", "context", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name}: must be >= 1, got {value}")
    if args.images is not None and not args.images.is_dir():
        raise UsageError(f"--images: {args.images} is no folder; give one with PNG or JPEG files")
    for path in (args.plot, args.records):
        if path is not None and not path.resolve().parent.is_dir():
            raise UsageError(f"{path}: no such folder to write it to; make it first")


def class_shares(asked: list[tuple[str, float]] | None, classes: Mapping[str, SLOClass]) -> dict[str, float]:
    """The mix of classes. Raises UsageError for one the configuration lacks."""
    if not asked:
        timed = [name for name, c in classes.items() if (c.deadline_ms, c.ttft_ms, c.tpot_ms) != (None, None, None)]
        return dict.fromkeys(timed or ["default"], 1.0)
    for name, _ in asked:
        if name not in classes:
            raise UsageError(f"--slo-class: unknown, got {name!r}; use some of {sorted(classes)}, or define it")
    return dict(asked)


def make_workload(
    args: argparse.Namespace,
    fitted: Callable[[Workload], Workload],
    shares: Mapping[str, float],
    capacity: Callable[[Workload], float],
) -> Workload:
    """What is sent. ``fitted``: lengths as the model takes them; ``capacity``: requests/s at load 1, for requests like
    those of a workload.

    Raises ValueError naming what is wrong with the trace or the description.
    """
    from stepwell.serving.replay.synthetic import synthesize
    from stepwell.serving.replay.trace import read_trace

    most = args.requests or (_MOST_REQUESTS if args.duration else DEFAULT_REQUESTS)
    if args.trace is not None:
        workload = read_trace(args.trace).window(args.start, num_requests=most)
    else:
        workload = synthesize(args.synthetic, most, args.seed)
    workload = fitted(workload).with_classes(shares, args.seed)
    if args.rate or args.load:
        workload = workload.at_rate(args.rate or args.load * (args.capacity or capacity(workload)))
    return workload.window(duration_s=args.duration) if args.duration else workload


def positive(text: str) -> float:
    """Type of an option: a number > 0."""
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be > 0 and finite, got {text}")
    return value


def duration(text: str) -> float:
    """Type of an option: a number >= 0."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be >= 0 and finite, got {text}")
    return value


def _fraction(text: str) -> float:
    if not 0.0 <= (value := float(text)) <= 1.0:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {text}")
    return value


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if min(found := (int(height), int(width))) < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1 x 1, got {text}")
    return found


def share(text: str) -> tuple[str, float]:
    """Type of an option: NAME:SHARE, or NAME for a share of 1."""
    name, colon, number = text.partition(":")
    return name, positive(number) if colon else 1.0
