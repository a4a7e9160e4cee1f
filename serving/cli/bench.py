"""Send a trace or made-up load to a server, and say what it got: goodput at SLO, quality, latency, refusals.

The load generator is open-loop: it sends every request at its time and waits for none, and latencies count from when a
request was due to be sent. Without --address a server is started for the run, in a process of its own.

docs/bench.md says how other servers of the Open Inference Protocol are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli import bench_options
from stepwell.serving.cli.output import CommandError, add_json_option, print_json, say

if TYPE_CHECKING:
    from stepwell.serving.config import SLOClass
    from stepwell.serving.replay.child import ChildServer
    from stepwell.serving.replay.load import LoadRun, Target
    from stepwell.serving.replay.workload import Workload

HELP = "send a load to a server, open loop; report goodput at SLO"
_ANSWER_S = 20.0
"""For a server to say what it serves."""
_WARM_UP = 3


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
    from stepwell.serving.config import load_config
    from stepwell.serving.grpc.load_wire import NotServedError
    from stepwell.serving.replay.child import ChildError

    bench_options.check(args)
    classes = load_config(args.config).slo_classes
    shares = bench_options.class_shares(args.slo_class, classes)
    try:
        with _server(args) as (address, check_alive):
            target, context_length = target_for(args, address, classes)
            workload = bench_options.make_workload(
                args, context_length, shares, lambda workload: simulated_capacity(workload, args)
            )
            done = _measure(workload, target)
            died = check_alive()
    except (NotServedError, ChildError) as error:
        raise CommandError(str(error)) from error
    _deliver(args, done, target)
    if died is not None:
        raise CommandError(died)


def target_for(args: argparse.Namespace, address: str, classes: Mapping[str, SLOClass]) -> tuple[Target, int | None]:
    """The server as a target, and the context its model has, if known. Raises NotServedError, RequestFailedError."""
    from stepwell.serving.client import Client, RequestFailedError
    from stepwell.serving.replay.load import Target, probe

    name = Path(args.model).name if not args.address else args.model
    inputs = probe(address, name, _ANSWER_S)
    vocab_size, context_length = args.vocab or 256, args.context
    try:
        with Client(address) as client:
            model = client.describe(name)
        vocab_size, context_length = args.vocab or model.vocab_size, args.context or model.context_length
    except RequestFailedError as error:
        if error.status != "UNIMPLEMENTED":
            raise
        say(f"not a Stepwell server: qualities count as {args.quality:g}, token ids lie below {vocab_size}")
    target = Target(
        address=address,
        model=name,
        slo_classes=classes,
        unary=args.unary,
        slo_as=args.slo_as,
        text="input_ids" not in inputs,
        vocab_size=vocab_size,
        quality=args.quality,
        timeout_s=args.timeout,
        num_connections=args.connections,
    )
    return target, context_length


def simulated_capacity(workload: Workload, args: argparse.Namespace) -> float:
    """Requests a second that the server started here is said to serve at full quality: load 1, as the simulator has it,
    by the cost profile of this machine."""
    from stepwell.schedulers.plan import Limits
    from stepwell.serving.config import load_config
    from stepwell.serving.replay.sim_model import open_sim_model
    from stepwell.serving.replay.simulate import FULL_QUALITY, Setup, capacity

    config = load_config(None, server_document(args))
    (model,) = config.models
    sim_model, cost_source = open_sim_model(model, config.threads)
    limits = Limits(model.generation_step_tokens, model.max_running, model.max_waiting)
    found = capacity(workload, Setup(sim_model, FULL_QUALITY, config.slo_classes, limits))
    say(f"load 1 = {found:.4g} requests/s, from {cost_source}")
    return found


def _measure(workload: Workload, target: Target) -> LoadRun:
    from stepwell.serving.replay.load import send_load

    _warm_up(target)
    span, many = workload.span_s, len(workload)
    say(f"sending {many} requests in {span:.1f} s ({workload.rate:.4g}/s) to {target.address} ...")
    return send_load(workload, target, say)


def _warm_up(target: Target) -> None:
    """The first requests of a process find nothing warm: send some, with prompts that none of the workload shares.

    Raises CommandError if all of them fail.
    """
    from dataclasses import replace

    from stepwell.serving.replay.load import send_load
    from stepwell.serving.replay.workload import Arrival, Workload

    name = next(iter(target.slo_classes))
    workload = Workload.of("warm-up", [Arrival(0.2 * i, 8, 4, name, prefix=(2**40 + i,)) for i in range(_WARM_UP)])
    records = send_load(workload, replace(target, slo_as="none")).records
    if all(record.result.outcome == "failed" for record in records):
        raise CommandError(
            f"server: fails every request ({records[-1].status}: {records[-1].message}); nothing was sent"
        )


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


def _deliver(args: argparse.Namespace, done: LoadRun, target: Target) -> None:
    from stepwell.serving.cli.bench_table import describe
    from stepwell.serving.replay.load_report import record_document, report

    document = report(done)
    if args.records is not None:
        with args.records.open("w") as lines:
            lines.writelines(json.dumps(record_document(record), allow_nan=False) + "\n" for record in done.records)
        say(f"records: {args.records}")
    if args.plot is not None:
        from stepwell.serving.replay.timeline import save_timeline

        save_timeline(done.results, args.plot, f"{done.workload.name} on {target.model} at {target.address}")
        say(f"plot: {args.plot}")
    if args.json:
        print_json(document)
    else:
        print(describe(document))
