"""How soon a saturated server refuses a burst, and what that costs it: ``python benchmarks/refusals.py``.

Bursts of calls, all within 50 ms, prompts of 600 tokens. First to an idle server of ``nested-lm``, which they ask for
the impossible; then to one that got streamed requests, each with a deadline, until it refused them, so that it runs at
its limit. The client is the load generator's, in another process. Time to refusal is the client's, from the moment a
call was due to the status; processor time is that of the server's process, its engine not included, until the last is
refused. ``--compare PYTHON`` measures the Stepwell of another interpreter in turn, burst by burst. Beside them a server
of gRPC's that refuses at once whatever comes, without reading it.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import torch
from common import arguments, cpu_s, report

from stepwell.serving.event_loop import new_event_loop
from stepwell.serving.grpc.load_wire import LoadWire, read_answer
from stepwell.serving.replay.child import ChildServer

MODEL = "nested-lm"
STEADY = {"ttft_ms": 1500, "tpot_ms": 60}
BURST = {"ttft_ms": 150, "tpot_ms": 60}
HOPELESS = {"ttft_ms": 1, "tpot_ms": 60}
WINDOW_S, REST_S, OPEN_S = 0.05, 0.5, 30.0
PROMPT_TOKENS = 600
REFUSED = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


@dataclass
class Found:
    """Of all bursts of one kind on one server."""

    refused_ms: list[list[float]] = field(default_factory=list)
    """For each burst, from when each refused call was due to its status."""
    inside_ms: list[list[float]] = field(default_factory=list)
    """The server's own account of the same; without the wait before it knew of the call."""
    cpu_ms: list[float] = field(default_factory=list)
    """A call; one for each burst."""
    num_calls: int = 0


class Side:
    """One server and the connections to it."""

    def __init__(self, address: str, pid: int, model: str) -> None:
        """``model``: empty for a server that serves none."""
        self._address, self._pid, self._model = address, pid, model
        self._numbers = random.Random(1)
        self.idle, self.saturated = Found(), Found()
        self._wire = self._connected()

    def _connected(self) -> LoadWire:
        wire = LoadWire(self._address, self._model, timeout_s=OPEN_S)
        if self._model:
            wire.open(OPEN_S)
        else:
            wire._calls.connect(OPEN_S)
        return wire

    def measure(self, num_calls: int) -> None:
        """A burst while the engine has nothing to do, and one while it has more than it can do."""
        self._burst(self.idle, HOPELESS, num_calls)
        if self._model:
            steady = self._connected()
            self._saturate(steady)
            self._burst(self.saturated, BURST, num_calls)
            steady.close()

    def _burst(self, found: Found, asked: Mapping[str, Any], num_calls: int) -> None:
        messages = [self._message(asked, PROMPT_TOKENS, 8) for _ in range(num_calls)]
        start_cpu_s, start_s, sent = cpu_s(self._pid), time.monotonic(), []
        for due_s in sorted(start_s + self._numbers.uniform(0.0, WINDOW_S) for _ in messages):
            self._wire.wait(due_s)
            sent.append((due_s, self._wire.send(messages.pop())))
        while not all(exchange.over_s for _, exchange in sent if not exchange.pieces):
            self._wire.wait(time.monotonic() + 0.002)
        found.cpu_ms.append((cpu_s(self._pid) - start_cpu_s) / num_calls * 1e3)
        found.num_calls += num_calls
        self._wire.finish()
        answers = [(due_s, exchange.over_s, read_answer(exchange, unary=False)) for due_s, exchange in sent]
        refused = [answer for answer in answers if answer[2].status in REFUSED]
        found.refused_ms.append([(over_s - due_s) * 1e3 for due_s, over_s, _ in refused])
        found.inside_ms.append([float(answer.parameters.get("total_ms", 0.0)) for _, _, answer in refused])

    def _saturate(self, wire: LoadWire) -> None:
        num_refused = 0
        while num_refused < 8:
            sent = [wire.send(self._message(STEADY, 64, 200)) for _ in range(4)]
            wire.wait(time.monotonic() + 0.06)
            num_refused += sum(bool(exchange.over_s) for exchange in sent)

    def _message(self, asked: Mapping[str, Any], prompt_tokens: int, max_tokens: int) -> bytes:
        prompt = [self._numbers.randrange(2000) for _ in range(prompt_tokens)]
        return self._wire.message(0, prompt, {**asked, "max_tokens": max_tokens, "ignore_eos": True})

    def close(self) -> None:
        """Hang up."""
        self._wire.close()


def serve_bare(ports: Any) -> None:
    """A process: gRPC's server, which refuses every stream."""

    async def refuse(requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "x" * 100, (("x-stepwell-total-ms", "0.1"),))

    async def run() -> None:
        server = grpc.aio.server()
        handlers = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(refuse)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
        )
        ports.put(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    new_event_loop().run_until_complete(run())


@contextlib.contextmanager
def bare() -> Iterator[Side]:
    """What gRPC itself takes."""
    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=serve_bare, args=(ports,), daemon=True)
    process.start()
    assert process.pid is not None
    with contextlib.closing(Side(f"127.0.0.1:{ports.get(timeout=60)}", process.pid, "")) as side:
        yield side
    process.terminate()
    process.join()


@contextlib.contextmanager
def stepwell(python: str, threads: int) -> Iterator[Side]:
    """The server of an interpreter's Stepwell."""
    with (
        ChildServer({"models": [MODEL], "threads": threads}, python=python) as child,
        contextlib.closing(Side(child.address, child.pid, MODEL)) as side,
    ):
        yield side


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(threads=1)
    parser.add_argument("--calls", type=int, default=77, help="of a burst (default 77)")
    parser.add_argument("--bursts", type=int, default=8, help="on each server (default 8)")
    parser.add_argument(
        "--compare", metavar="PYTHON", help='measure the Stepwell of this interpreter in turn, as "before"'
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # of the servers' engines; the head of the table names as many
    pythons = {"stepwell": sys.executable}
    if options.compare:
        pythons["before"] = options.compare
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(stepwell(python, options.threads)) for name, python in pythons.items()}
        sides["gRPC's server alone"] = stack.enter_context(bare())
        gc.disable()
        for _ in range(options.bursts):
            for name, side in sides.items():
                side.measure(options.calls)
                print(f"{name}: {side.idle.cpu_ms[-1]:.2f} ms a call", file=sys.stderr)
                time.sleep(REST_S)
    rows = [row for name, side in sides.items() for row in _rows(name, side)]
    header = ["", "refused", "to refusal: p50 ms", "p99 ms", "in the server: p50 ms", "p99 ms", "server CPU ms a call"]
    notes = (
        f"Medians of {options.bursts} bursts of {options.calls} streamed calls within {WINDOW_S * 1e3:.0f} ms, prompts "
        f"of {PROMPT_TOKENS} tokens, in turn. Idle: the engine has nothing to do and the calls ask for the impossible. "
        "Saturated: it runs at its limit meanwhile, on the same cores, and the server streams what it makes."
    )
    report("refusals", "How soon a burst is refused", header, rows, notes, options.save)


def _rows(name: str, side: Side) -> Iterator[list[str]]:
    for state, found in (("idle", side.idle), ("saturated", side.saturated)):
        if not found.num_calls:
            continue
        quantiles = [
            f"{statistics.median(statistics.quantiles(times, n=100)[q] for times in bursts if len(times) > 1):.1f}"
            for bursts in (found.refused_ms, found.inside_ms)
            for q in (49, 98)
        ]
        share = f"{sum(map(len, found.refused_ms))} of {found.num_calls}"
        yield [f"{name}, {state}", share, *quantiles, f"{statistics.median(found.cpu_ms):.2f}"]


if __name__ == "__main__":
    main()
