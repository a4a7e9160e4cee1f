"""How long answers were under way, and how many calls were turned away: from the server, which knows it, to the
engine's process, which plans with it."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from stepwell.schedulers.answer_way import BEYOND_S, UNKNOWN_S, AnswerWay
from stepwell.schedulers.toll import Toll
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
            host.turned_away()
        await asyncio.sleep(0.01)
        mine.close()
        theirs.close()

    asyncio.run(main())
    reader = m.reader()
    reader.feed(b"".join(sent))
    told = list(reader)
    assert [kind for kind, _ in told] == [m.DELIVERED, m.TURNED_AWAY] * 2
    assert [way for _, ways in told[::2] for way in ways] == [number / 1e3 for number in range(2 * REPORT_EVERY)]
    assert [number for _, number in told[1::2]] == [REPORT_EVERY] * 2


def test_the_engine_plans_with_them(monkeypatch) -> None:
    mine, theirs = socket.socketpair()
    model, engine = SimpleNamespace(answer_way=AnswerWay(), toll=Toll()), SimpleNamespace(now=lambda: 100.0)
    loop: Any = SimpleNamespace(start=lambda: None, stop=lambda: None)
    monkeypatch.setattr(Worker, "_open", lambda worker, settings: (engine, {}, loop, model))
    with theirs, mine:
        assert model.answer_way.seconds == UNKNOWN_S
        worker = Worker(theirs)
        received = iter([[(m.OPEN, {})], [(m.DELIVERED, (0.02,) * 64), (m.TURNED_AWAY, 7)], []])
        monkeypatch.setattr(worker, "_receive", lambda: next(received))
        worker.run()
    assert model.answer_way.seconds == pytest.approx(0.02 + BEYOND_S)
    model.toll.call_s = 0.001
    assert model.toll.lost_s(100.1, 100.3) == pytest.approx(0.007)
