"""Images under load: whether they are answered in time, and how well: ``python benchmarks/vision_slo.py``.

A real server (a process of its own, one for each policy) with the shipped ``routed-vit``; images arrive at random
(Poisson), open loop, each with a deadline, the same for every policy. Load 1 is what the simulator says the machine
answers at full quality. This is ``stepwell bench`` for several policies and loads: the same workload, generator and
report.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from common import RESULTS, arguments, report

from stepwell.serving.cli.bench_target import ANSWER_S, Learned, warm_up
from stepwell.serving.client import Client
from stepwell.serving.config import ModelConfig, SLOClass
from stepwell.serving.replay.child import ChildServer
from stepwell.serving.replay.items import as_items, deadlines_note, item_classes, typical_tokens
from stepwell.serving.replay.load import Target, probe, send_load
from stepwell.serving.replay.outcomes import Summary
from stepwell.serving.replay.pictures import made_up
from stepwell.serving.replay.plots import save_plot
from stepwell.serving.replay.sim_model import limits_of, open_sim_model
from stepwell.serving.replay.simulate import FULL_QUALITY, Setup, capacity
from stepwell.serving.replay.synthetic import synthesize
from stepwell.serving.replay.workload import Workload

MODEL = "routed-vit"
MIX = {"tight": 1.0, "normal": 1.0}
POLICIES = "staircase,slack_fit,clockwork,max_quality,max_throughput,fixed"
MANY = 1000
"""Images that say what load 1 is."""


def load_one(seed: int) -> tuple[float, dict[str, SLOClass]]:
    """Images per second at full quality, and what may be asked of an image, both by the profile."""
    config = ModelConfig(MODEL)
    model, _ = open_sim_model(config)
    assert model.items is not None
    images = as_items(synthesize("poisson:rate=1", MANY, seed), model.items)
    setup = Setup(model, FULL_QUALITY, limits=limits_of(config, model))
    return capacity(images, setup), item_classes(model.item_s(typical_tokens(images)))


def target_of(address: str, classes: Mapping[str, SLOClass], seed: int) -> Target:
    """The server's model; it is told what a class asks for in numbers."""
    with Client(address) as client:
        size = client.describe(MODEL).image_size
    found = probe(address, MODEL, ANSWER_S)
    pictures = made_up(found.inputs, size, seed)
    return Target(
        address, MODEL, classes, unary=True, slo_as="numbers", whole=True, outputs=("logits",), pictures=pictures
    )


def workload_at(rate: float, seconds: float, seed: int) -> Workload:
    """Poisson arrivals of so many seconds, each an image."""
    made = synthesize(f"poisson:rate={rate}", max(2, round(rate * seconds)), seed)
    return made.with_lengths(lambda _: (1, 1), "an image each").with_classes(MIX, seed)


def main() -> None:
    """The table and the picture."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--loads", default="0.3,1,2,3")
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rate, classes = load_one(args.seed)
    runs = {policy: run(policy, rate, classes, args) for policy in args.policies.split(",")}
    loads = [load for load, _ in next(iter(runs.values()))]
    rows = [
        [f"{load:g}", f"{load * rate:.0f}", *(cell(points[i][1]) for points in runs.values())]
        for i, load in enumerate(loads)
    ]
    title = f"Images under load, {MODEL} over gRPC; load 1 = {rate:.0f} images/s"
    notes = (
        f"Met / mean quality / tokens kept / p99 in ms of what was served. Classes in equal shares; "
        f"{deadlines_note({name: classes[name] for name in MIX})}. {args.seconds:g} s a run, {args.threads} threads."
    )
    report("vision_slo", title, ["load", "images/s", *runs], rows, notes, args.save)
    if args.save:
        save_plot(RESULTS / "vision_slo.png", title, runs)


def run(
    policy: str, rate: float, classes: Mapping[str, SLOClass], args: argparse.Namespace
) -> list[tuple[float, Summary]]:
    """Load and summary of each run of one policy."""
    points = []
    config = {"threads": args.threads, "models": [{"source": MODEL, "policy": policy}]}
    with ChildServer(config) as child:
        target = target_of(child.address, classes, args.seed)
        for load in map(float, args.loads.split(",")):
            workload = workload_at(load * rate, args.seconds, args.seed)
            warm_up(Learned(target, None, ours=True), workload)
            done = send_load(workload, target)
            points.append((load, Summary.of(done.results, done.duration_s)))
            print(f"{policy} at load {load:g}: {cell(points[-1][1])}", flush=True)
    return points


def cell(summary: Summary) -> str:
    """A run in the table."""
    if summary.mean_quality is None or summary.latency_p99_s is None:
        return "0.0% / - / - / -"
    kept = summary.mean_kept_ratio
    return (
        f"{summary.attainment:.1%} / {summary.mean_quality:.3f} / {'-' if kept is None else f'{kept:.0%}'} / "
        f"{1e3 * summary.latency_p99_s:.0f}"
    )


if __name__ == "__main__":
    main()
