"""The server's side of an engine in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from stepwell.models.loader import read_files
from stepwell.schedulers.request import Request
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine import endings
from stepwell.serving.engine.events import FinishEvent, Outcome, Sink
from stepwell.serving.engine.host import OnLost
from stepwell.serving.engine.job import Job
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.engine_process import messages as m
from stepwell.serving.errors import RequestError, Status
from stepwell.serving.hosted import HostedModel

END_S = 10.0
"""For a process that has been told to end, beyond the time it may drain; then it is killed."""
REPORT_EVERY = 8
"""Answers after which the engine is told how long they were under way; and calls, that they were turned away."""
GATHER_S = 0.001
"""While requests come faster than this one after the other, they go to the engine together."""
_RECEIVE_BYTES = 1 << 16
_NO_STEPS = math.nan, math.nan, 1.0
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_log = logging.getLogger(__name__)


def open_in_process(config: ModelConfig, observer: EngineObserver, threads: int = 0, nice: int = 0) -> HostedModel:
    """Load a model whose engine runs in a process of its own, with so many ``threads`` (0 = what torch chooses), by so
    much nicer than this one.

    Raises ValueError naming the file or field and the remedy.
    """
    worker = WorkerProcess()  # it imports what it needs while this one reads the model's files
    try:
        files = read_files(config.source)
        found = replace(config, source=str(files.path), name=config.display_name)
        worker.open(found, threads, nice)
    except BaseException:
        worker.kill()
        raise
    return HostedModel.of(config, files, ProcessHost(worker, observer))


class WorkerProcess:
    """A process that runs :mod:`stepwell.serving.engine_process.worker`, and the connection to it."""

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair()
        command = [sys.executable, "-m", "stepwell.serving.engine_process.worker", str(theirs.fileno())]
        # The folder that the server was started in is no place to import from.
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, config: ModelConfig, threads: int, nice: int = 0) -> None:
        """Have it open a model, and wait for that. Raises ValueError."""
        settings = {
            "model": asdict(config),
            "threads": threads,
            "nice": nice,
            "log_level": logging.getLogger().getEffectiveLevel(),
            "log_format": _LOG_FORMAT,
        }
        reader = m.reader()
        with contextlib.suppress(ConnectionError):  # it ended: said below
            self.connection.sendall(m.pack(m.OPEN, settings))
            while data := self.connection.recv(_RECEIVE_BYTES):
                reader.feed(data)
                for kind, *content in reader:
                    if kind == m.FAILED:
                        raise ValueError(*content)
                    assert kind == m.OPENED
                    return
        raise ValueError(f"model: {config.display_name!r}: its engine ended while it loaded ({self.how_it_ended()})")

    def how_it_ended(self) -> str:
        """For people; of a process that has ended or is about to."""
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it no longer answers"
        return f"signal {-status}" if status < 0 else f"exit status {status}, see the log"

    def wait(self, timeout_s: float) -> None:
        """Until it has ended; killed if it does not in ``timeout_s`` seconds."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _log.warning("the engine's process %d does not end: killed", self.pid)
            self.kill()

    def kill(self) -> None:
        """End it whatever it is doing."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


class _Open:
    """A request that the engine has not ended yet."""

    __slots__ = ("answer", "request", "sink")

    def __init__(self, request: Request, sink: Sink, answer: asyncio.Future[None]) -> None:
        self.request, self.sink, self.answer = request, sink, answer


class ProcessHost(asyncio.Protocol):
    """See :class:`~stepwell.serving.engine.host.EngineHost`. Sinks and observer are called on the event loop."""

    def __init__(self, worker: WorkerProcess, observer: EngineObserver, clock: Callable[[], float] = time.monotonic):
        self.worker = worker
        self._observer, self._clock = observer, clock
        self._open: dict[str, _Open] = {}
        self._messages = m.reader()
        self._num_waiting = self._num_running = 0
        self._cache_usage_ratio = self._backlog_s = self._call_toll_s = 0.0
        self._prediction: dict[str, tuple[float, float, float]] = {}
        self._outgoing: list[bytes] = []
        self._ways_s: list[float] = []
        self._num_turned_away = 0
        self._flushed_s = -math.inf
        self._stopping = False
        self._ended = threading.Event()

    def start(self, loop: asyncio.AbstractEventLoop, on_lost: OnLost) -> None:
        """See the protocol."""
        self._loop, self._on_lost = loop, on_lost

        async def connect() -> None:
            self._transport, _ = await loop.create_connection(lambda: self, sock=self.worker.connection)

        asyncio.run_coroutine_threadsafe(connect(), loop).result()

    def stop(self, drain_s: float = 0.0) -> None:
        """See the protocol."""

        def ask() -> None:
            self._stopping = True
            self._send(m.pack(m.STOP, drain_s))

        self._loop.call_soon_threadsafe(ask)
        self._ended.wait(drain_s + END_S)
        self.worker.wait(END_S)

    async def submit(self, job: Job, sink: Sink) -> None:
        """See the protocol."""
        request_id = job.request.request_id
        if self._stopping or self._ended.is_set():
            raise RequestError(Status.UNAVAILABLE, "server: stopping, takes no new requests; retry elsewhere")
        answer: asyncio.Future[None] = self._loop.create_future()
        self._open[request_id] = _Open(job.request, sink, answer)
        self._send(m.pack(m.SUBMIT, m.from_job(job)))
        try:
            await answer
        except asyncio.CancelledError:
            self.cancel(request_id)
            raise

    def cancel(self, request_id: str) -> None:
        """See the protocol."""
        if request_id in self._open:
            self._send(m.pack(m.CANCEL, request_id))

    def answer_took(self, seconds: float) -> None:
        """See the protocol."""
        self._ways_s.append(seconds)
        if len(self._ways_s) >= REPORT_EVERY and not self._ended.is_set():
            ways_s, self._ways_s = self._ways_s, []
            self._send(m.pack(m.DELIVERED, ways_s))

    def turned_away(self) -> None:
        """See the protocol."""
        self._num_turned_away += 1
        if self._num_turned_away >= REPORT_EVERY and not self._ended.is_set():
            number, self._num_turned_away = self._num_turned_away, 0
            self._send(m.pack(m.TURNED_AWAY, number))

    def _send(self, message: bytes) -> None:
        """Together with all else of this turn of the event loop, and of the next millisecond if something was sent in
        the last: waking another process costs more than a message."""
        if not self._outgoing:
            if self._clock() < self._flushed_s + GATHER_S:
                self._loop.call_later(GATHER_S, self._flush)
            else:
                self._loop.call_soon(self._flush)
        self._outgoing.append(message)

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        self._flushed_s = self._clock()
        self._transport.write(b"".join(messages))

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def num_running(self) -> int:
        return self._num_running

    @property
    def cache_usage_ratio(self) -> float:
        return self._cache_usage_ratio

    @property
    def backlog_s(self) -> float:
        return self._backlog_s

    @property
    def call_toll_s(self) -> float:
        return self._call_toll_s

    def prediction_error(self, kind: str) -> float:
        return self._prediction.get(kind, _NO_STEPS)[0]

    def prediction_coverage(self, kind: str) -> float:
        return self._prediction.get(kind, _NO_STEPS)[1]

    def prediction_slowness(self, kind: str) -> float:
        return self._prediction.get(kind, _NO_STEPS)[2]

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        self._messages.feed(data)
        for kind, *content in self._messages:
            if kind == m.ANSWER:
                self._answered(*content)
            else:
                self._happened(*content)

    def _answered(self, request_id: str, refusal: m.Packed | None) -> None:
        if refusal is None:
            if (admitted := self._open.get(request_id)) is not None:  # else it has ended already
                _resolve(admitted.answer, None)
            return
        refused = self._open.pop(request_id)
        error, event = refusal
        if event is not None:
            self._tell(self._observer.request_refused, m.to_finish(event), refused.request)
        _resolve(refused.answer, m.to_error(error))

    def _happened(
        self, tokens: m.Packed, results: m.Packed, ends: m.Packed, step: m.Packed | None, gauges: Any
    ) -> None:
        *counts, prediction = gauges
        self._num_waiting, self._num_running, self._cache_usage_ratio, self._backlog_s, self._call_toll_s = counts
        self._prediction = {kind: (error, coverage, slowness) for kind, error, coverage, slowness in prediction}
        for packed in tokens:
            event = m.to_token(packed)
            self._tell(self._open[event.request_id].sink, event)
        for packed in results:
            result = m.to_result(packed)
            self._tell(self._open[result.request_id].sink, result)
        for packed in ends:
            self._end(m.to_finish(packed))
        if step is not None:
            self._tell(self._observer.step_finished, m.to_step(step))

    def _end(self, event: FinishEvent) -> None:
        ended = self._open.pop(event.request_id)
        _resolve(ended.answer, None)  # an engine that was quick ended it before the submission was answered
        self._tell(ended.sink, event)
        self._tell(self._observer.request_finished, event, ended.request)

    def _tell(self, listener: Callable[..., None], *what: object) -> None:
        """Nothing out there can break the connection."""
        try:
            listener(*what)
        except Exception:
            _log.exception("a listener of the engine failed")

    def connection_lost(self, exc: Exception | None) -> None:
        """From the event loop: the process has ended, or is about to."""
        self._ended.set()
        self._num_waiting = self._num_running = 0
        self._cache_usage_ratio = self._backlog_s = 0.0
        outcome, reason, error, drop_reason = endings.shut_down() if self._stopping else endings.failed()
        for request_id, lost in list(self._open.items()):
            report = m.unfinished_report(lost.request, self._clock())
            self._end(FinishEvent(request_id, outcome or Outcome.FAILED, reason, error, report, drop_reason))
        if not self._stopping:
            self._stopping = True
            self._on_lost(f"its engine's process {self.worker.pid} ended ({self.worker.how_it_ended()})")


def _resolve(answer: asyncio.Future[None], error: RequestError | None) -> None:
    if answer.done():  # answered before, or whoever submitted has left
        return
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)
