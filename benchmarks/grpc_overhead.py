"""What gRPC adds to the in-process engine for a one-token request: ``python benchmarks/grpc_overhead.py``.

The shipped ``nested-lm`` at its smallest point, one request at a time. In process: the public ``Engine`` (data plane
and engine thread). Over gRPC: a server process on loopback, called by Stepwell's client (streaming) and by ModelInfer
with the same prompt. The overhead is the difference of the medians of interleaved calls.
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

from stepwell.serving import Client, Engine
from stepwell.serving.app import Server
from stepwell.serving.config import load_config
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
                    "in process": lambda: engine.generate(PROMPT, **ask),
                    "gRPC Generate": lambda: client.complete(MODEL, PROMPT, **ask),
                    "gRPC ModelInfer": lambda: infer(infer_request()),
                },
                options.calls,
            )
            channel.close()
    finally:
        process.terminate()
        process.join()
    base = statistics.median(times["in process"])
    rows = []
    for name, values in times.items():
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
        rows.append([name, f"{p50:.2f}", f"{p99:.2f}", "" if name == "in process" else f"{p50 - base:.2f}"])
    report(
        "grpc_overhead",
        "A one-token request: gRPC against the in-process engine",
        ["", "p50 ms", "p99 ms", "overhead p50 ms"],
        rows,
        f"nested-lm at its smallest point, one request at a time, {options.calls} calls each, interleaved; client and "
        "server are processes of one machine, one torch thread each.",
        options.save,
    )


if __name__ == "__main__":
    main()
