"""How long answers were under way: from the server, which measures it, to the engine's process, which plans with it."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from stepwell.schedulers.answer_way import BEYOND_S, UNKNOWN_S, AnswerWay
from stepwell.serving.engine_process import messages as m
from stepwell.serving.engine_process.host import REPORT_EVERY, ProcessHost
from stepwell.serving.engine_process.worker import Worker
from stepwell.serving.metrics import Metrics


def test_the_server_tells_them_a_few_at_a_time() -> None:
    sent: list[bytes] = []

    async def main() -> None:
        mine, theirs = socket.socketpair()
        host = ProcessHost(SimpleNamespace(connection=mine), Metrics().observer("m"))  # type: ignore[arg-type]
        host._loop, host._transport = asyncio.get_running_loop(), SimpleNamespace(write=sent.append)  # type: ignore[assignment]
        for number in range(2 * REPORT_EVERY + 1):
            host.answer_took(number / 1e3)
        await asyncio.sleep(0.01)
        mine.close()
        theirs.close()

    asyncio.run(main())
    reader = m.reader()
    reader.feed(b"".join(sent))
    told = list(reader)
    assert [kind for kind, _ in told] == [m.DELIVERED] * 2
    assert [way for _, ways in told for way in ways] == [number / 1e3 for number in range(2 * REPORT_EVERY)]


def test_the_engine_plans_with_them(monkeypatch) -> None:
    mine, theirs = socket.socketpair()
    answer_way = AnswerWay()
    loop: Any = SimpleNamespace(start=lambda: None, stop=lambda: None)
    monkeypatch.setattr(Worker, "_open", lambda worker, settings: (SimpleNamespace(), {}, loop, answer_way))
    with theirs, mine:
        assert answer_way.seconds == UNKNOWN_S
        worker = Worker(theirs)
        received = iter([[(m.OPEN, {})], [(m.DELIVERED, (0.02,) * 64)], []])
        monkeypatch.setattr(worker, "_receive", lambda: next(received))
        worker.run()
    assert answer_way.seconds == pytest.approx(0.02 + BEYOND_S)
