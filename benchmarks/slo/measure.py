"""Attainment and quality against load on the real server: every policy, every load, one trace after the other.

    python benchmarks/slo/measure.py --code AzureLLMInferenceTrace_2023_code.csv \\
                                     --conv AzureLLMInferenceTrace_2023_conv.csv

Round by round and load by load, a fresh server (``stepwell serve``, a process of its own) gets the same requests for
each policy in turn, open loop over gRPC, and is stopped. Before each load it is measured anew what surrounds the engine
here (``calibrate.py``), because shared machines change their pace: load 1 is what the model serves at full quality at
that time, as the simulator computes it from the model's cost profile and those figures; what the classes ask for is
relative to the machine too, see ``ASKED``. The same requests are also replayed in virtual time. Writes
``benchmarks/results/slo_TRACE.json``; ``report.py`` beside this makes the tables, the pictures and the verdicts of it.

Takes loads x traces x (75 s + policies x (--seconds + 25 s)) a round: two hours as it is. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from stepwell.schedulers.plan import Limits
from stepwell.serving.config import ModelConfig, SLOClass
from stepwell.serving.point_costs import made_up_slice
from stepwell.serving.replay.child import ChildServer
from stepwell.serving.replay.load import Target, send_load
from stepwell.serving.replay.load_report import report
from stepwell.serving.replay.sim_model import open_sim_model
from stepwell.serving.replay.simulate import FULL_QUALITY, Setup, SimModel, capacity, simulate
from stepwell.serving.replay.surroundings import Surroundings
from stepwell.serving.replay.trace import read_trace
from stepwell.serving.replay.workload import Arrival, Workload

sys.path.insert(0, str(Path(__file__).parents[1]))
from calibrate import calibrate
from common import RESULTS, hardware

MODEL = "nested-lm"
POLICIES = ("fixed:default:7", "max_quality", "max_throughput", "slack_fit", "clockwork", "staircase", "fixed:min")
LOADS = (0.3, 1.0, 1.5, 2.0, 3.0)
SHARES = {"tight": 1.0, "normal": 1.0, "relaxed": 1.0}
ASKED = {"tight": (4.5, 1.35), "normal": (22.5, 4.5), "relaxed": (90.0, 13.5)}
"""Time to first token and per token of each class, in units of what a prompt of :data:`UNIT_TOKENS` tokens takes at
full quality: so a slower machine is asked for no more than a faster one. With a unit of 22 ms, ``tight`` and ``normal``
are the server's own; ``relaxed`` is short enough for a run to outlast it."""
PATIENCE_S = 90.0
"""Of the client: longer than any class grants. Only who is served far too late is given up on."""
UNIT_TOKENS = 256
SIM_NOISE = 0.1
FITTING = 0.99
"""Share of the requests whose lengths fit the model's context without clipping."""
CALIBRATION_S = 10.0
"""Length of the runs that say what surrounds the engine."""
FIRST_S = 600.0
"""Where in a trace its window starts."""


def main() -> None:
    """See the module."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    for name, path in (("code", args.code), ("conv", args.conv)):
        if path is not None:
            _measure(name, path, args)


def _measure(name: str, path: Path, args: argparse.Namespace) -> None:
    """One trace."""
    model, source = open_sim_model(ModelConfig(MODEL), args.threads)
    trace = read_trace(path).window(FIRST_S).fitted(model.context_length, FITTING).with_classes(SHARES)
    document: dict[str, Any] = {
        "trace": name, "hardware": hardware(), "notes": list(trace.notes), "settings": [], "runs": [],
    }  # fmt: skip
    path_out = RESULTS / f"slo_{name}.json"
    if args.add:
        document = json.loads(path_out.read_text(encoding="utf-8"))
    first = 1 + max((setting["round"] for setting in document["settings"]), default=0)
    print(f"{name}: costs from {source}", file=sys.stderr)
    for round_ in range(first, first + args.rounds):
        for load in args.loads:
            around = _surroundings(trace, model, args.threads)
            setup = Setup(
                model, FULL_QUALITY, classes_of(model, around), Limits(), noise=SIM_NOISE, surroundings=around
            )
            unit = capacity(trace.window(num_requests=600), setup)
            workload = trace.window(num_requests=max(20, round(load * unit * args.seconds))).at_rate(load * unit)
            setting = {
                "round": round_, "load": load, "capacity": unit, "requests": len(workload), "seconds": args.seconds,
                "surroundings": asdict(around), "classes": {c: _stated(setup.classes[c]) for c in SHARES},
            }  # fmt: skip
            document["settings"].append(setting)
            print(f"round {round_}: load 1 = {unit:.3g} requests/s; {around}", file=sys.stderr)
            # In an order of its own each time, so that a drift of the machine favours nobody.
            for policy in random.Random(f"{round_} {load}").sample(args.policies, len(args.policies)):
                run = {"policy": policy, "load": load, "round": round_}
                run |= _real(workload, policy, args.threads, setup.classes)
                run["simulated"] = simulate(workload, replace(setup, policy=policy)).summary.to_dict()
                document["runs"].append(run)
                print(
                    f"{name} {load:g} {policy}: {_line(run['summary'])} | simulated {_line(run['simulated'])}",
                    file=sys.stderr,
                )
                path_out.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _surroundings(trace: Workload, model: SimModel, threads: int) -> Surroundings:
    """Of the machine as it is now."""
    setup = Setup(model, FULL_QUALITY, classes_of(model), Limits())
    unit = capacity(trace.window(num_requests=600), setup)
    sample = trace.window(num_requests=round(CALIBRATION_S * unit)).at_rate(unit)
    return calibrate(MODEL, sample, threads, setup.classes, PATIENCE_S)


def classes_of(model: SimModel, around: Surroundings | None = None) -> dict[str, SLOClass]:
    """The classes on this machine; ``around``: as it is now."""
    best = max((p for p in model.points.values() if p.ladder == model.ladders.default), key=lambda p: p.level)
    unit_ms = (around or Surroundings()).seconds(model.costs.raw_s([made_up_slice(best, UNIT_TOKENS, 0)])) * 1e3
    return {
        name: SLOClass(ttft_ms=round(ttft * unit_ms), tpot_ms=round(tpot * unit_ms), priority=priority)
        for priority, (name, (ttft, tpot)) in enumerate(ASKED.items(), 1)
    }


def _real(workload: Workload, policy: str, threads: int, classes: Mapping[str, SLOClass]) -> dict[str, Any]:
    """A fresh server, a few requests to warm it up, the workload."""
    config = {
        "models": [{"source": MODEL, "policy": policy}],
        "threads": threads,
        "slo_classes": {name: _stated(each) for name, each in classes.items()},
    }
    with ChildServer(config) as child:
        target = Target(child.address, MODEL, classes, vocab_size=2048, timeout_s=PATIENCE_S)
        warm = Workload.of("warm-up", [Arrival(0.15 * i, 40, 4, "relaxed", prefix=(2**40 + i,)) for i in range(12)])
        send_load(warm, replace(target, slo_as="none"))
        time.sleep(0.3)
        found = report(send_load(workload, target))
    kept = ("summary", "latency", "refusals", "failures", "verdicts", "generator")
    return {key: found[key] for key in kept}


def _stated(slo_class: SLOClass) -> dict[str, float]:
    return {key: value for key, value in vars(slo_class).items() if value}


def _line(summary: Mapping[str, Any]) -> str:
    quality = summary["mean_quality"] or 0.0
    worst = summary["worst_lateness_ratio"] or 0.0
    return (
        f"attained {summary['attainment']:.1%}, quality {quality:.3f}, goodput {summary['goodput']:.2f}/s, "
        f"{summary['refusals']} refused, worst {worst:.2f}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, metavar="F", help="the Azure trace of code completions")
    parser.add_argument("--conv", type=Path, metavar="F", help="the Azure trace of conversations")
    parser.add_argument("--seconds", type=float, default=14.0, help="of load for each run (default 14)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of one model operation (default 1: clients share the machine)"
    )
    parser.add_argument("--policies", type=_words, default=list(POLICIES), help="default: all")
    parser.add_argument("--loads", type=_numbers, default=list(LOADS), help="default 0.3,1,1.5,2,3")
    parser.add_argument("--rounds", type=int, default=2, help="of all loads and policies (default 2)")
    parser.add_argument("--add", action="store_true", help="further rounds, beside those that the result file has")
    args = parser.parse_args()
    if args.code is None and args.conv is None:
        parser.error("give --code, --conv or both: the traces of github.com/Azure/AzurePublicDataset")
    return args


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> Sequence[float]:
    return [float(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
