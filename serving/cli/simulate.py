"""Replay a trace or made-up load in virtual time, through the server's own engine and policies.

Steps take as long as the model's cost profile says; nothing is computed, so hours pass in seconds. Load 1 is what the
machine can serve at full quality (max_quality, everything there from the start, no SLO), in requests a second.

To a model that answers as a whole each arrival is one item: an image of its own size, or a text as long as the prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli.bench_options import class_shares, duration, positive, share
from stepwell.serving.cli.output import UsageError, add_json_option, print_json, say, table

if TYPE_CHECKING:
    from stepwell.serving.config import ServerConfig
    from stepwell.serving.replay.outcomes import Summary
    from stepwell.serving.replay.simulate import Setup
    from stepwell.serving.replay.workload import Workload

HELP = "replay a trace in virtual time, policy against policy"
DEFAULT_LOADS = "0.3,0.6,1,1.5,2,3"
DEFAULT_REQUESTS = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell simulate``."""
    what = parser.add_argument_group("what arrives").add_mutually_exclusive_group(required=True)
    what.add_argument("--trace", type=Path, metavar="F", help="Azure CSV or Mooncake JSON lines")
    what.add_argument("--synthetic", metavar="KIND:...", help="e.g. poisson:rate=5 or gamma:rate=5,cv=4,prompt=200")
    parser.add_argument("--requests", type=int, default=DEFAULT_REQUESTS, metavar="N", help="default %(default)s")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="skip the first S seconds of the trace")
    parser.add_argument("--load", type=_numbers, default=DEFAULT_LOADS, metavar="X,X", help="default %(default)s")
    parser.add_argument("--capacity", type=positive, metavar="R", help="requests/s that are load 1 (default: measure)")
    parser.add_argument(
        "--slo-class",
        action="append",
        type=share,
        metavar="NAME:SHARE",
        help="mix of classes; give it once for each (default: all classes with a latency, in equal shares)",
    )
    parser.add_argument(
        "--unscaled", action="store_true", help="of a model that generates: keep lengths that exceed its context"
    )
    parser.add_argument("--policies", default="", metavar="A,B", help="default: all; fixed:POINT pins one")
    parser.add_argument("--model", default="nested-lm", metavar="MODEL", help="default %(default)s")
    parser.add_argument("--config", metavar="F", help="the server's YAML: its slo_classes, and limits of the model")
    parser.add_argument("--profile", choices=("auto", "default"), default="auto",
                        help="costs: auto = measured on this machine; default = a rule of thumb")  # fmt: skip
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="engines (default 1)")
    parser.add_argument("--routing", choices=("least-loaded", "round-robin"), default="least-loaded")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.05,
        metavar="S",
        help="spread of step times: sigma of a log-normal factor (default %(default)s, 0 = none)",
    )
    around = parser.add_argument_group(
        "what surrounds the engines", "By default nothing does: steps alone take time. See benchmarks/slo/calibrate.py."
    )
    around.add_argument("--slowness", type=positive, default=1.0, metavar="X", help="steps take X times their cost ...")
    around.add_argument("--step-ms", type=duration, default=0.0, metavar="MS", help="... and so much more, each")
    around.add_argument("--call-ms", type=duration, default=0.0, metavar="MS", help="to read a call, one at a time")
    around.add_argument("--token-ms", type=duration, default=0.0, metavar="MS", help="to write a token, likewise")
    around.add_argument(
        "--toll-ms", type=duration, default=0.0, metavar="MS", help="a call takes from the step that runs"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of load, classes and noise (default 0)")
    parser.add_argument("--plot", type=Path, metavar="F.png", help="save attainment, quality and goodput against load")
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Simulate every policy at every load, and report. Raises UsageError, ValueError, RequestError."""
    from stepwell.serving.config import load_config

    _check(args)
    config = load_config(args.config, {"models": [args.model]} if args.config is None else None)
    document, summaries = _simulate(args, config)
    if args.plot is not None:
        from stepwell.serving.replay.plots import save_plot

        save_plot(args.plot, _headline(document), summaries)
        say(f"plot: {args.plot}")
    if args.json:
        print_json(document)
    else:
        print(_text(document, summaries))


def _check(args: argparse.Namespace) -> None:
    for name in ("requests", "replicas"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name}: must be >= 1, got {getattr(args, name)}")
    if not 0 <= args.noise <= 2:
        raise UsageError(f"--noise: must be in [0, 2], got {args.noise:g}")
    if args.plot is not None and not args.plot.resolve().parent.is_dir():
        raise UsageError(f"--plot: {args.plot.parent} is no folder; make it first")


def _simulate(
    args: argparse.Namespace, config: ServerConfig
) -> tuple[dict[str, Any], dict[str, list[tuple[float, Summary]]]]:
    """The document of ``--json``, and the summaries by policy."""
    from dataclasses import asdict, replace

    from stepwell.serving.replay.items import are_built_in, deadlines_note, item_classes, typical_tokens
    from stepwell.serving.replay.simulate import capacity, simulate

    setup, cost_source = _setup(args, config)
    workload = _workload(args, setup)
    if setup.model.items is not None and are_built_in(config.slo_classes):
        setup = replace(setup, classes=item_classes(setup.model.item_s(typical_tokens(workload))))
        workload = workload.noted(deadlines_note(setup.classes))
    workload = workload.with_classes(class_shares(args.slo_class, setup.classes), args.seed)
    reference = args.capacity or capacity(workload, setup)
    say(f"{workload.name}: {len(workload)} requests; load 1 = {reference:.4g} requests/s")
    runs = []
    summaries: dict[str, list[tuple[float, Summary]]] = {name: [] for name in _policies(args)}
    for policy, points in summaries.items():
        for load in args.load:
            replay = simulate(workload.at_rate(load * reference), replace(setup, policy=policy))
            points.append((load, replay.summary))
            say(f"{policy} at load {load:g}: attainment {replay.summary.attainment:.1%}, {replay.duration_s:.0f} s")
            runs.append({"policy": policy, "load": load, "rate": load * reference, "summary": points[-1][1].to_dict()})
    return {
        "workload": {"name": workload.name, "requests": len(workload), "notes": list(workload.notes)},
        "model": args.model,
        "costs": cost_source,
        "capacity": reference,
        "replicas": args.replicas,
        "routing": args.routing,
        "noise": args.noise,
        "surroundings": asdict(setup.surroundings),
        "seed": args.seed,
        "runs": runs,
    }, summaries


def _setup(args: argparse.Namespace, config: ServerConfig) -> tuple[Setup, str]:
    """What is simulated, and where its costs come from."""
    from dataclasses import replace

    from stepwell.serving.replay.sim_model import limits_of, open_sim_model
    from stepwell.serving.replay.simulate import FULL_QUALITY, Setup
    from stepwell.serving.replay.surroundings import Surroundings

    chosen = config.model(args.model) or next((m for m in config.models if m.source == args.model), None)
    if chosen is None:
        raise UsageError(f"--model: not in {args.config}, got {args.model!r}; use one of its models")
    say(f"{args.model}: reading what its steps cost (the first time on a machine, measuring it)")
    model, cost_source = open_sim_model(replace(chosen, profile=args.profile), config.threads)
    limits = limits_of(chosen, model)
    seconds = (ms / 1e3 for ms in (args.step_ms, args.call_ms, args.token_ms, args.toll_ms))
    around = Surroundings(args.slowness, *seconds)
    setup = Setup(
        model=model,
        policy=FULL_QUALITY,
        classes=config.slo_classes,
        limits=limits,
        replicas=args.replicas,
        routing=args.routing,
        noise=args.noise,
        seed=args.seed,
        surroundings=around,
    )
    return setup, cost_source


def _workload(args: argparse.Namespace, setup: Setup) -> Workload:
    from stepwell.serving.replay.items import as_items
    from stepwell.serving.replay.synthetic import synthesize
    from stepwell.serving.replay.trace import read_trace

    if args.trace is not None:
        workload = read_trace(args.trace).window(args.start, num_requests=args.requests)
    else:
        workload = synthesize(args.synthetic, args.requests, args.seed)
    if setup.model.items is not None:
        return as_items(workload, setup.model.items)
    return workload if args.unscaled else workload.fitted(setup.model.context_length)


def _policies(args: argparse.Namespace) -> list[str]:
    """Names asked for, in their order; ``fixed`` alone stands for its largest point."""
    from stepwell.schedulers.plan import Limits
    from stepwell.schedulers.registry import POLICIES, create_policy

    names = [name.strip() for name in args.policies.split(",") if name.strip()] or list(POLICIES)
    for name in names:
        create_policy(name, Limits())
    return list(dict.fromkeys(names))


def _headline(document: Mapping[str, Any]) -> str:
    workload, replicas = document["workload"], document["replicas"]
    engines = "" if replicas == 1 else f", {replicas} replicas"
    return (
        f"{workload['name']}, {workload['requests']} requests, simulated on {document['model']}{engines}; "
        f"load 1 = {document['capacity']:.3g} requests/s"
    )


def _text(document: Mapping[str, Any], summaries: Mapping[str, Sequence[tuple[float, Summary]]]) -> str:
    notes = [f"  {note}" for note in [*document["workload"]["notes"], f"costs: {document['costs']}"]]
    rows, class_rows = [], []
    for policy, points in summaries.items():
        for load, summary in points:
            rows.append(([policy, f"{load:g}"], summary))
            for name, part in summary.per_class.items():
                class_rows.append(([policy, f"{load:g}", name, str(part.num_sent)], part))
    everything = [summary for points in summaries.values() for _, summary in points]
    columns = [column for column in _COLUMNS if any(column.value(summary) != "-" for summary in everything)]
    headers = [column.header for column in columns]
    everyone = table(["policy", "load", *headers], _rows(rows, columns), left=["policy"])
    per_class = table(["policy", "load", "class", "sent", *headers], _rows(class_rows, columns), ["policy", "class"])
    legend = (
        "goodput: met, weighted by quality; p50, p99: arrival to end, of what was served; refused: shed or "
        "expired; worst: latency over latency asked, of what was served"
    )
    if any(summary.mean_kept_ratio is not None for summary in everything):
        legend += "; kept: tokens that were left, averaged over the layers"
    return "\n".join([_headline(document), *notes, "", everyone, "", per_class, "", legend])


@dataclass(frozen=True)
class _Column:
    """Left out where no run has a value."""

    header: str
    value: Callable[[Summary], str]


_COLUMNS = (
    _Column("attained", lambda summary: f"{summary.attainment:.1%}"),
    _Column("quality", lambda summary: _number(summary.mean_quality, 3)),
    _Column("kept", lambda summary: _percent(summary.mean_kept_ratio)),
    _Column("goodput/s", lambda summary: f"{summary.goodput:.2f}"),
    _Column("p50 s", lambda summary: _number(summary.latency_p50_s, 3)),
    _Column("p99 s", lambda summary: _number(summary.latency_p99_s, 3)),
    _Column("ttft p99 s", lambda summary: _number(summary.ttft_p99_s, 3)),
    _Column("refused", lambda summary: str(summary.refusals)),
    _Column("worst", lambda summary: _number(summary.worst_lateness_ratio, 2)),
)


def _rows(rows: Sequence[tuple[list[str], Summary]], columns: Sequence[_Column]) -> list[list[str]]:
    return [[*head, *(column.value(summary) for column in columns)] for head, summary in rows]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _numbers(text: str) -> list[float]:
    return [positive(part) for part in text.split(",")]
