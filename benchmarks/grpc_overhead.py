"""What gRPC adds to the in-process engine for a one-token request: ``python benchmarks/grpc_overhead.py``.

The shipped ``nested-lm`` at its smallest point, one request at a time. Bare: the step engine driven by the calling
thread, prompt already tokenised. In process: the public ``Engine`` (data plane and engine thread). Over gRPC: a server
process on loopback, called by ModelInfer and by Stepwell's client (streaming). Calls are interleaved; overheads are
differences of medians.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable

import grpc
import torch
from common import arguments, report

from stepwell.models.sampling import SamplingParams
from stepwell.schedulers.request import SLO, Request
from stepwell.serving import Client, Engine
from stepwell.serving.app import Server
from stepwell.serving.config import load_config
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.points import resolve_point
from stepwell.serving.hosting import open_in_thread
from stepwell.serving.pb import inference_pb2, inference_pb2_grpc

MODEL, PROMPT = "nested-lm", "def main("


def infer_request() -> inference_pb2.ModelInferRequest:
    """PROMPT as a ModelInfer request for one token at the smallest point."""
    request = inference_pb2.ModelInferRequest(model_name=MODEL)
    request.parameters["max_tokens"].int64_param = 1
    request.parameters["operating_point"].string_param = "min"
    text = request.inputs.add(name="text", datatype="BYTES", shape=[1])
    text.contents.bytes_contents.append(PROMPT.encode())
    return request


class BareEngine:
    """The step engine alone: no data plane, no thread, no event loop."""

    def __init__(self) -> None:
        self.hosted = open_in_thread(load_config(None, {"models": [MODEL]}).models[0], _Nobody())
        assert self.hosted.tokenizer is not None
        self.prompt = tuple(self.hosted.tokenizer.encode(PROMPT))
        self.point = self.hosted.points[resolve_point(self.hosted.ladders, "min")]

    def complete(self) -> None:
        """One request for one token."""
        engine = self.hosted.host.engine
        request = Request("r", time.monotonic(), SLO(), (self.point,), len(self.prompt), 1)
        engine.submit(GenerationJob(request, self.prompt, SamplingParams()), lambda event: None)
        while engine.has_work:
            engine.step()


class _Nobody:
    """An observer of the engine that looks away."""

    def request_finished(self, event: object, request: object) -> None: ...

    def step_finished(self, step: object) -> None: ...


def measure(cases: dict[str, Callable[[], object]], num_calls: int) -> dict[str, list[float]]:
    """Milliseconds of every call, one of each case in turn."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for call in range(num_calls + 20):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if call >= 20:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def serve(port_queue: object, threads: int) -> None:
    """The server's process: start, tell the port, serve until terminated."""
    torch.set_num_threads(threads)
    server = Server(load_config(None, {"models": [MODEL], "grpc_port": 0, "http_port": 0}))
    asyncio.run(server.run(lambda ready: port_queue.put(ready.grpc_port)))  # type: ignore[attr-defined]


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    context = torch.multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=serve, args=(ports, 1), daemon=True)
    process.start()
    try:
        port = ports.get(timeout=120)
        ask = {"max_tokens": 1, "operating_point": "min"}
        with Engine.open(MODEL) as engine, Client(f"127.0.0.1:{port}") as client:
            channel = grpc.insecure_channel(f"127.0.0.1:{port}")
            infer = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            print(f"{options.calls} calls each ...", file=sys.stderr)
            times = measure(
                {
                    "bare step engine": BareEngine().complete,
                    "in process": lambda: engine.generate(PROMPT, **ask),
                    "gRPC ModelInfer": lambda: infer(infer_request()),
                    "gRPC Generate (streaming client)": lambda: client.complete(MODEL, PROMPT, **ask),
                },
                options.calls,
            )
            channel.close()
    finally:
        process.terminate()
        process.join()
    bare, engine = (statistics.median(times[name]) for name in ("bare step engine", "in process"))
    rows = []
    for name, values in times.items():
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
        over = [f"{p50 - base:.2f}" if name.startswith("gRPC") else "" for base in (engine, bare)]
        rows.append([name, f"{p50:.2f}", f"{p99:.2f}", *over])
    report(
        "grpc_overhead",
        "A one-token request: gRPC against the engine in process",
        ["", "p50 ms", "p99 ms", "p50 over in process, ms", "p50 over bare step engine, ms"],
        rows,
        f"nested-lm at its smallest point, one request at a time, {options.calls} calls each, interleaved; client and "
        "server are processes of one machine, one torch thread each.",
        options.save,
    )


if __name__ == "__main__":
    main()
