"""What the engine says travels in as few messages as can be, and nothing waits that needs not."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.engine.endings import cancelled, finished
from stepwell.serving.engine.events import FinishEvent, Outcome, Report, TokenEvent
from stepwell.serving.engine.observer import StepObservation
from stepwell.serving.engine_process import messages as m
from stepwell.serving.engine_process.worker import Outgoing

REQUEST = Request("r", 0.0, SLO(), (OperatingPoint(1.0, 1.0, "depth", 0),), 1, 1)
REPORT = Report("depth:0", 1.0, None, None, 0.0, 1.0, 1.0, True, False, 1.0, None, 1, 1, 0, {"depth:0": 1})
STEP = StepObservation("decode", 0.01, 0.01, ("depth:0",), 0, 2, 0, ())


@pytest.fixture
def sent() -> list[Any]:
    return []


@pytest.fixture
def outgoing(sent: list[Any]) -> Outgoing:
    reader = m.reader()

    def send(data: bytes) -> None:
        reader.feed(data)
        sent.extend(reader)

    return Outgoing(send)


def end(request_id: str, ending: Any) -> FinishEvent:
    outcome, reason, error, why = ending
    return FinishEvent(request_id, outcome or Outcome.MET, reason, error, REPORT, why)


def test_answers_of_a_step_travel_together(outgoing: Outgoing, sent: list[Any]) -> None:
    for name in "ab":
        outgoing.sink(TokenEvent(name, (1,), "", None))
        outgoing.sink(event := end(name, finished("length")))
        outgoing.request_finished(event, REQUEST)
    assert not sent
    outgoing.step_finished(STEP)
    [(kind, tokens, results, ends, step, _)] = sent
    assert kind == m.EVENTS
    assert [m.to_token(token).request_id for token in tokens] == ["a", "b"]
    assert [m.to_finish(each).request_id for each in ends] == ["a", "b"]
    assert not results
    assert m.to_step(step) == STEP


def test_who_gets_no_answer_is_told_at_once(outgoing: Outgoing, sent: list[Any]) -> None:
    outgoing.sink(event := end("c", cancelled()))
    outgoing.request_finished(event, REQUEST)
    [(_, _, _, ends, step, _)] = sent
    assert [m.to_finish(each).outcome for each in ends] == [Outcome.CANCELLED]
    assert step is None
