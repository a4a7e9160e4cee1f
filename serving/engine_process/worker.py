"""The engine's process: opens a model, runs its engine in a thread, and reads what the server sends in the main one."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from stepwell.schedulers.correction import KINDS
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.request import OperatingPoint, Request
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.events import FinishEvent, Output, TokenEvent
from stepwell.serving.engine.loop import EngineLoop
from stepwell.serving.engine.observer import StepObservation
from stepwell.serving.engine_process import messages as m
from stepwell.serving.errors import RequestError
from stepwell.serving.hosting import open_engine

RECEIVE_BYTES = 1 << 18
SWITCH_S = 1e-4
"""The thread that reads waits at most so long for the interpreter's lock, which the engine's takes back after every
operation of torch. Python's default, 5 ms, would be the time of a refusal."""

_log = logging.getLogger(__name__)


class Outgoing:
    """Everything an engine says, on its way to the server: one message a step, and ends without an answer at once."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._gauges: Callable[[], m.Packed] = tuple
        self._tokens: list[m.Packed] = []
        self._results: list[m.Packed] = []
        self._ends: list[m.Packed] = []
        self._refusal: m.Packed | None = None

    def watch(self, engine: Engine, cost_model: StepCostModel) -> None:
        """Whose gauges go with every message."""
        correction, toll = cost_model.correction, cost_model.toll

        def gauges() -> m.Packed:
            quality = [
                (kind, correction.error(kind), correction.coverage(kind), correction.median(kind)) for kind in KINDS
            ]
            counts = engine.num_waiting, engine.num_running, engine.cache_usage_ratio, engine.backlog_s
            return *counts, toll.call_s, quality

        self._gauges = gauges

    def sink(self, event: Output | FinishEvent) -> None:
        """Of every request; engine thread."""
        if isinstance(event, TokenEvent):
            self._tokens.append(m.from_token(event))
        elif isinstance(event, FinishEvent):
            self._ends.append(m.from_finish(event))
        else:
            self._results.append(m.from_result(event))

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        if event.error is not None:  # else it is part of a step that is being committed, and goes with it
            self._flush(None)

    def request_refused(self, event: FinishEvent, request: Request) -> None:
        """On the main thread, while it submits: part of the answer."""
        self._refusal = m.from_finish(event)

    def take_refusal(self) -> m.Packed | None:
        """How the request ended that was submitted just now; None unless the policy refused it."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def step_finished(self, step: StepObservation) -> None:
        self._flush(m.from_step(step))

    def _flush(self, step: m.Packed | None) -> None:
        tokens, self._tokens = self._tokens, []
        results, self._results = self._results, []
        ends, self._ends = self._ends, []
        self._send(m.pack(m.EVENTS, tokens, results, ends, step, self._gauges()))


class Worker:
    """One engine and the connection to its server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._messages = m.reader()
        self._outgoing = Outgoing(self._send)

    def run(self) -> None:
        """Until the server says STOP, or is gone."""
        (kind, settings), *others = self._receive()
        assert kind == m.OPEN
        assert not others, "the server waits for the engine to be open"
        if (opened := self._open(settings)) is None:
            return
        engine, points, loop, cost_model = opened
        loop.start()
        self._send(m.pack(m.OPENED))
        while received := self._receive():
            answers = []
            for kind, *content in received:
                if kind == m.SUBMIT:
                    answers.append(self._submit(engine, points, *content))
                elif kind == m.CANCEL:
                    engine.cancel(*content)
                elif kind == m.DELIVERED:
                    cost_model.answer_way.observe(*content)
                elif kind == m.TURNED_AWAY:
                    cost_model.toll.calls_came(engine.now(), *content)
                elif kind == m.STOP:
                    threading.Thread(target=self._stop, args=(loop, *content), daemon=True).start()
            if answers:
                self._send(b"".join(answers))
        loop.stop()

    def _open(
        self, settings: Mapping[str, Any]
    ) -> tuple[Engine, Mapping[str, OperatingPoint], EngineLoop, StepCostModel] | None:
        logging.basicConfig(level=settings["log_level"], format=settings["log_format"])
        if settings["threads"]:
            torch.set_num_threads(settings["threads"])
        config = ModelConfig(**settings["model"])
        try:
            opened = open_engine(config, self._outgoing)
        except Exception as error:
            if not isinstance(error, ValueError):
                _log.exception("model %s: cannot be opened", config.display_name)
            self._send(m.pack(m.FAILED, str(error) or type(error).__name__))
            return None
        self._outgoing.watch(opened.engine, opened.cost_model)
        # What was made until now stays: a full collection need not look at it again, in the middle of a step.
        gc.collect()
        gc.freeze()
        loop = EngineLoop(opened.engine, nice=settings["nice"])
        return opened.engine, opened.points, loop, opened.cost_model

    def _submit(self, engine: Engine, points: Mapping[str, OperatingPoint], packed: m.Packed) -> bytes:
        job = m.to_job(packed, points)
        request_id, refusal = job.request.request_id, None
        try:
            engine.submit(job, self._outgoing.sink)
        except RequestError as error:
            refusal = m.from_error(error), self._outgoing.take_refusal()
        return m.pack(m.ANSWER, request_id, refusal)

    def _stop(self, loop: EngineLoop, drain_s: float) -> None:
        loop.stop(drain_s)
        self._connection.shutdown(socket.SHUT_RDWR)  # which ends the reading, too

    def _receive(self) -> list[Any]:
        """Whole messages, one at least; none once the server is gone."""
        while True:
            try:
                data = self._connection.recv(RECEIVE_BYTES)
            except OSError:
                return []
            if not data:
                return []
            self._messages.feed(data)
            if received := list(self._messages):
                return received

    def _send(self, message: bytes) -> None:
        with self._sending:
            self._connection.sendall(message)


def main() -> None:
    """``worker FD``: ``FD`` is this side's end of the socket pair."""
    sys.setswitchinterval(SWITCH_S)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the server, which ends this process when it is done
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        Worker(connection).run()


if __name__ == "__main__":
    main()
