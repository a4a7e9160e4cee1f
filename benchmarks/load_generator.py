"""What the load generator costs: processor time of ways to send a request: ``python benchmarks/load_generator.py``.

Each way, in a process of its own, sends the same bursty load to the same server, which answers at once and in a process
of its own: whole answers, and streams of 30 tokens 5 ms apart. Ways take turns. Processor time is the client's, all of
its threads, from the first send to the last answer.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from common import arguments, report

from stepwell.serving.grpc.calls import Calls
from stepwell.serving.grpc.replies import reply_of

TOKENS, GAP_S, CONNECTIONS, TIMEOUT_S = 30, 0.005, 4, 60.0
REQUEST, WHOLE, TOKEN = bytes(4800), bytes(700), bytes(110)
"""As many bytes as a prompt of 600 tokens, its answer, and a token of ours take."""
METHODS = {"whole": "/echo.Echo/Whole", "stream": "/echo.Echo/Stream"}
RATES = {"whole": 150.0, "stream": 40.0}
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
Way = Callable[[str, str, list[float]], tuple[float, list[float]]]
"""(address, kind, due times) -> processor time and lags, in seconds."""


def serve(ports: Any) -> None:
    """The server's process."""

    async def whole(request: bytes, context: Any) -> bytes:
        return WHOLE

    async def stream(request: bytes, context: Any) -> None:
        for _ in range(TOKENS):
            await context.write(TOKEN)
            await asyncio.sleep(GAP_S)

    async def run() -> None:
        server = grpc.aio.server()
        handlers = {
            "Whole": grpc.unary_unary_rpc_method_handler(whole),
            "Stream": grpc.unary_stream_rpc_method_handler(stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", handlers),))
        ports.put(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


def ours(address: str, kind: str, due: list[float]) -> tuple[float, list[float]]:
    """HTTP/2 on plain sockets, one thread."""
    calls = Calls(address, METHODS[kind], TIMEOUT_S, num_connections=CONNECTIONS)
    calls.connect(TIMEOUT_S)
    lags, sent = [], []
    cpu_s, start_s = time.process_time(), time.monotonic() + 0.05
    for at_s in due:
        calls.wait(start_s + at_s)
        lags.append(time.monotonic() - start_s - at_s)
        sent.append(calls.send(REQUEST))
    calls.finish()
    cpu_s = time.process_time() - cpu_s
    assert all(reply_of(exchange).status == "OK" for exchange in sent)
    calls.close()
    return cpu_s, lags


def grpc_aio(address: str, kind: str, due: list[float]) -> tuple[float, list[float]]:
    """gRPC's library on asyncio, bytes in and out."""

    async def run() -> tuple[float, list[float]]:
        channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(CONNECTIONS)]
        shape = "unary_unary" if kind == "whole" else "unary_stream"
        send = itertools.cycle([getattr(channel, shape)(METHODS[kind]) for channel in channels]).__next__
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        lags: list[float] = []

        async def one(due_s: float) -> None:
            lags.append(time.monotonic() - due_s)
            call = send()(REQUEST, timeout=TIMEOUT_S)
            if kind == "whole":
                await call
            else:
                assert len([time.monotonic() async for _ in call]) == TOKENS

        cpu_s, start_s, tasks = time.process_time(), time.monotonic() + 0.05, []
        for at_s in due:
            await asyncio.sleep(max(0.0, start_s + at_s - time.monotonic()))
            tasks.append(asyncio.create_task(one(start_s + at_s)))
        await asyncio.gather(*tasks)
        return time.process_time() - cpu_s, lags

    return asyncio.run(run())


def grpc_aio_uvloop(address: str, kind: str, due: list[float]) -> tuple[float, list[float]]:
    """The same on uvloop."""
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    return grpc_aio(address, kind, due)


def grpc_threads(address: str, kind: str, due: list[float]) -> tuple[float, list[float]]:
    """gRPC's library without asyncio: futures for whole answers, a thread for each stream."""
    channels = [grpc.insecure_channel(address, OPTIONS) for _ in range(CONNECTIONS)]
    shape = "unary_unary" if kind == "whole" else "unary_stream"
    send = itertools.cycle([getattr(channel, shape)(METHODS[kind]) for channel in channels]).__next__
    for channel in channels:
        grpc.channel_ready_future(channel).result(TIMEOUT_S)
    over = threading.Semaphore(0)

    def read(call: Any) -> None:
        assert len([time.monotonic() for _ in call]) == TOKENS
        over.release()

    lags = []
    cpu_s, start_s = time.process_time(), time.monotonic() + 0.05
    for at_s in due:
        time.sleep(max(0.0, start_s + at_s - time.monotonic()))
        lags.append(time.monotonic() - start_s - at_s)
        if kind == "whole":
            send().future(REQUEST, timeout=TIMEOUT_S).add_done_callback(lambda _: over.release())
        else:
            threading.Thread(target=read, args=(send()(REQUEST, timeout=TIMEOUT_S),)).start()
    for _ in due:
        over.acquire()
    return time.process_time() - cpu_s, lags


def run_way(results: Any, way: Way, *args: Any) -> None:
    """A way's process. Without garbage collection, as in the load generator."""
    gc.disable()
    results.put(way(*args))


WAYS: dict[str, Way] = {
    "ours": ours, "grpc.aio": grpc_aio, "grpc.aio, uvloop": grpc_aio_uvloop, "grpc, threads": grpc_threads,
}  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each run (default 3)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    server = context.Process(target=serve, args=(queue,), daemon=True)
    server.start()
    address = f"127.0.0.1:{queue.get(timeout=60)}"
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(options.repeats):
        for kind, rate in RATES.items():
            due = _times(rate, options.seconds)
            for name, way in WAYS.items():
                process = context.Process(target=run_way, args=(queue, way, address, kind, due))
                process.start()
                cpu_s, lags = queue.get(timeout=120)
                process.join()
                found.setdefault((kind, name), []).append((cpu_s / len(due), statistics.quantiles(lags, n=100)[98]))
                print(f"{kind} {name}: {cpu_s / len(due) * 1e3:.2f} ms", file=sys.stderr)
    server.terminate()
    server.join()
    rows = [
        [
            name,
            *(f"{1e3 * statistics.median(run[i] for run in found[kind, name]):.2f}" for kind in RATES for i in (0, 1)),
        ]
        for name in WAYS
    ]
    header = ["", "whole answer: CPU ms", "lag p99 ms", f"stream of {TOKENS}: CPU ms", "lag p99 ms"]
    notes = (
        f"Medians of {options.repeats} runs of {options.seconds:g} s each; bursty (CV 2); {CONNECTIONS} connections."
    )
    report("load_generator", "What sending a request costs the client", header, rows, notes, options.save)


def _times(rate: float, seconds: float) -> list[float]:
    """Seconds after the start at which requests are due: gaps of CV 2."""
    draw, at_s, due = random.Random(0), 0.0, []
    while (at_s := at_s + draw.gammavariate(0.25, 4.0 / rate)) < seconds:
        due.append(at_s)
    return due


if __name__ == "__main__":
    main()
