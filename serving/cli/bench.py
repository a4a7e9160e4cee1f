"""Send a trace or made-up load to a server, and say what it got: goodput at SLO, quality, latency, refusals.

The load generator is open-loop: it sends every request at its time and waits for none, and latencies count from when a
request was due to be sent. A model that answers as a whole is sent images or texts, one a request. Without --address a
server is started for the run, in a process of its own.

docs/bench.md says how other servers of the Open Inference Protocol are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli import bench_options
from stepwell.serving.cli.output import CommandError, add_json_option, print_json, say

if TYPE_CHECKING:
    from stepwell.serving.cli.bench_target import Learned
    from stepwell.serving.replay.child import ChildServer
    from stepwell.serving.replay.load import LoadRun
    from stepwell.serving.replay.simulate import Setup
    from stepwell.serving.replay.workload import Workload

HELP = "send a load to a server, open loop; report goodput at SLO"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell bench``."""
    bench_options.add_workload(parser.add_argument_group("what is sent"))
    bench_options.add_target(parser.add_argument_group("to whom"))
    bench_options.add_server(parser.add_argument_group("the server that is started without --address"))
    output = parser.add_argument_group("what comes out")
    add_json_option(parser)
    output.add_argument("--plot", type=Path, metavar="F.png", help="save a timeline of load, quality and misses")
    output.add_argument("--records", type=Path, metavar="F.jsonl", help="save every request, a JSON object a line")


def run(args: argparse.Namespace) -> None:
    """Send and report. Raises UsageError, CommandError, ValueError."""
    from stepwell.serving.cli.bench_target import learn
    from stepwell.serving.config import load_config
    from stepwell.serving.grpc.load_wire import NotServedError
    from stepwell.serving.replay.child import ChildError

    bench_options.check(args)
    classes = load_config(args.config).slo_classes
    shares = bench_options.class_shares(args.slo_class, classes)
    try:
        with _server(args) as (address, check_alive):
            learned = learn(args, address, classes)
            workload = bench_options.make_workload(
                args, learned.fitted, shares, lambda workload: simulated_capacity(workload, args)
            )
            done = _measure(workload, learned, args)
            died = check_alive()
    except (NotServedError, ChildError) as error:
        raise CommandError(str(error)) from error
    _deliver(args, done)
    if died is not None:
        raise CommandError(died)


def simulated_capacity(workload: Workload, args: argparse.Namespace) -> float:
    """Requests a second that the server started here is said to serve at full quality: load 1, as the simulator has it,
    by the cost profile of this machine."""
    from stepwell.serving.replay.items import as_items
    from stepwell.serving.replay.simulate import capacity

    setup, cost_source = _simulated(args)
    items = setup.model.items
    found = capacity(as_items(workload, items) if items else workload, setup)
    say(f"load 1 = {found:.4g} requests/s, from {cost_source}")
    return found


def _simulated(args: argparse.Namespace) -> tuple[Setup, str]:
    """The server started here as the simulator sees it, and where its costs are from."""
    from stepwell.serving.config import load_config
    from stepwell.serving.replay.sim_model import limits_of, open_sim_model
    from stepwell.serving.replay.simulate import FULL_QUALITY, Setup

    config = load_config(None, server_document(args))
    (model,) = config.models
    sim_model, cost_source = open_sim_model(model, config.threads)
    return Setup(sim_model, FULL_QUALITY, config.slo_classes, limits_of(model, sim_model)), cost_source


def _measure(workload: Workload, learned: Learned, args: argparse.Namespace) -> LoadRun:
    from stepwell.serving.cli.bench_target import told_in_numbers, warm_up
    from stepwell.serving.replay.items import are_built_in, deadlines_note, item_classes
    from stepwell.serving.replay.load import send_load

    target, predicted_s = learned.target, warm_up(learned, workload)
    if target.whole and are_built_in(target.slo_classes):
        item_s = predicted_s if args.address else _item_s(workload, args)
        if math.isnan(item_s):
            raise CommandError(
                "slo classes: the built-in ones are for generations, and this server does not say what an item takes; "
                "give --config with slo_classes"
            )
        target = told_in_numbers(target, item_classes(item_s))
        workload = workload.noted(deadlines_note(target.slo_classes))
    span, many = workload.span_s, len(workload)
    say(f"sending {many} requests in {span:.1f} s ({workload.rate:.4g}/s) to {target.address} ...")
    return send_load(workload, target, say)


def _item_s(workload: Workload, args: argparse.Namespace) -> float:
    """Of an item at full quality on its own, by the cost profile of this machine."""
    from stepwell.serving.replay.items import as_items, typical_tokens

    model = _simulated(args)[0].model
    assert model.items is not None
    return model.item_s(typical_tokens(as_items(workload, model.items)))


@contextlib.contextmanager
def _server(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """The server's address, and a function that says whether it died meanwhile. Raises ChildError."""
    from stepwell.serving.replay.child import ChildServer

    if args.address:
        yield args.address, lambda: None
        return
    say(f"starting a server for {args.model} ...")
    with ChildServer(server_document(args)) as child:
        yield child.address, lambda: _death(child)


def _death(child: ChildServer) -> str | None:
    status = child.exit_status
    return None if status is None else f"server: ended during the run (exit status {status}); {child.log_tail()}"


def server_document(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the server that is started: of ``--config`` this model's, with the options over it."""
    from stepwell.serving.config import ModelConfig
    from stepwell.serving.config_reader import read_yaml

    document = dict(read_yaml(Path(args.config))) if args.config else {}
    entries = [{"source": e} if isinstance(e, str) else dict(e) for e in document.get("models", [])]
    named = [e for e in entries if ModelConfig(e.get("source", ""), e.get("name", "")).display_name == args.model]
    model = named[0] if named else {"source": args.model}
    document["models"] = [model | ({"policy": args.policy} if args.policy else {})]
    return document | ({"threads": args.threads} if args.threads else {})


def _deliver(args: argparse.Namespace, done: LoadRun) -> None:
    from stepwell.serving.cli.bench_table import describe
    from stepwell.serving.replay.load_report import record_document, report

    document = report(done)
    if args.records is not None:
        with args.records.open("w") as lines:
            lines.writelines(json.dumps(record_document(record), allow_nan=False) + "\n" for record in done.records)
        say(f"records: {args.records}")
    if args.plot is not None:
        from stepwell.serving.replay.timeline import save_timeline

        save_timeline(done.results, args.plot, f"{done.workload.name} on {done.target.model} at {done.target.address}")
        say(f"plot: {args.plot}")
    if args.json:
        print_json(document)
    else:
        print(describe(document))
