"""The servers that ``compare.py`` compares: how each is started, and what it answers to one prompt."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepwell.serving.grpc.load_wire import LoadWire, NotServedError
from stepwell.serving.grpc.replies import reply_of
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.replay.child import ChildError, ChildServer
from stepwell.serving.replay.load import probe

MODEL, DTYPE = "nested-lm", "float32"
RIVALS = Path(__file__).with_name("rivals")
SOURCE = Path(__file__).parents[2] / "models" / "shipped" / MODEL
START_S, STOP_S = 120.0, 20.0
PROMPT, TOKENS = list(range(40, 140)), 24


class NotRunError(Exception):
    """A server did not start. The message says why."""


@dataclass(frozen=True)
class Contender:
    """A server with the checkpoint."""

    name: str
    what: str
    """In words, for the table."""
    policy: str = ""
    """Ours alone."""
    script: str = ""
    """In ``rivals``; it becomes the server."""
    arguments: tuple[str, ...] = ()
    unary: bool = False
    """It has no stream of the protocol."""
    threads: int = 1
    missing: str = ""
    """Why it cannot be started on this machine."""

    @property
    def ours(self) -> bool:
        return bool(self.policy)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """A fresh server's address. Raises NotRunError."""
        start = self._ours() if self.ours else self._rival()
        with start as address:
            yield address

    @contextlib.contextmanager
    def _ours(self) -> Iterator[str]:
        model = {"source": MODEL, "dtype": DTYPE, "policy": self.policy}
        child = ChildServer({"models": [model], "threads": self.threads})
        try:
            child.start()
        except ChildError as error:
            raise NotRunError(str(error)) from error
        try:
            yield child.address
        finally:
            child.stop()

    @contextlib.contextmanager
    def _rival(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        command = [sys.executable, str(RIVALS / self.script), "--source", str(SOURCE), "--grpc-port", str(port)]
        command += ["--threads", str(self.threads), *self.arguments]
        with tempfile.TemporaryDirectory(prefix="rival-") as folder:
            log = Path(folder) / "server.log"
            environment = os.environ | {"TMPDIR": folder, "OMP_NUM_THREADS": str(self.threads)}
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, stdout=output, stderr=output, env=environment, start_new_session=True
                )
            try:
                _await(f"127.0.0.1:{port}", process, log)
                yield f"127.0.0.1:{port}"
            finally:
                _stop(process)


def contenders(venvs: Path, threads: int) -> list[Contender]:
    """All of them, ours first. ``venvs``: folder with an environment for each rival."""

    def rival(name: str, what: str, kind: str, batching: str, unary: bool = False) -> Contender:
        venv = venvs / kind
        missing = "" if (venv / "bin" / "python").exists() else f"no {kind} among the environments (rivals/README.md)"
        arguments = ("--venv", str(venv), "--batching", batching)
        return Contender(name, what, "", f"start_{kind}.py", arguments, unary, threads, missing)

    return [
        Contender("Stepwell, staircase", "the planner, with the whole ladder", "staircase", threads=threads),
        Contender("Stepwell, max_quality", "the same server, everybody at full size", "max_quality", threads=threads),
        rival(
            "Triton, continuous",
            "Triton 2.51, decoupled Python backend over transformers' continuous batching",
            "triton",
            "continuous",
        ),
        rival(
            "Triton, static",
            "Triton 2.51, its dynamic batcher over transformers' `generate`, tokens streamed",
            "triton",
            "static",
        ),
        rival(
            "MLServer, continuous",
            "MLServer 1.7.1 over transformers' continuous batching, whole answers",
            "mlserver",
            "continuous",
            True,
        ),
        rival(
            "MLServer, static",
            "MLServer 1.7.1 over transformers' `generate`, whole answers",
            "mlserver",
            "static",
            True,
        ),
    ]


def greedy_ids(address: str, contender: Contender) -> list[int]:
    """What the server generates for one prompt at full size. Raises NotRunError if it is not served."""
    with contextlib.closing(LoadWire(address, MODEL, num_connections=1, unary=contender.unary)) as wire:
        wire.open(START_S)
        options: dict[str, bool | int | str] = {"max_tokens": TOKENS, "ignore_eos": True}
        pinned: dict[str, bool | int | str] = {"operating_point": "max"} if contender.ours else {}
        exchange = wire.send(wire.message(0, PROMPT, options | pinned))
        wire.finish()
    reply = reply_of(exchange)
    ids: list[int] = []
    for _, data in reply.messages:
        if contender.unary:
            response = pb.ModelInferResponse.FromString(data)
        else:
            response = pb.ModelStreamInferResponse.FromString(data).infer_response
        pairs = zip(response.outputs, response.raw_output_contents, strict=True)
        ids += [i for output, raw in pairs if output.name == "output_ids" for i in np.frombuffer(raw, "<i8").tolist()]
    if len(ids) != TOKENS:
        raise NotRunError(f"answers with {len(ids)} of {TOKENS} tokens ({reply.status}: {reply.message})")
    return ids


def _await(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            probe(address, MODEL, 1.0)
            return
        except NotServedError as error:
            if process.poll() is None and time.monotonic() < until_s:
                time.sleep(0.2)
                continue
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise NotRunError(f"did not start: {' / '.join(last) or error}") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end; then end what is left of the processes it started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
