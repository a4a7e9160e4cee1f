"""An engine in a thread of the process that uses it."""

from __future__ import annotations

import asyncio

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.events import Sink
from stepwell.serving.engine.host import OnLost
from stepwell.serving.engine.job import Job
from stepwell.serving.engine.loop import EngineLoop


class ThreadHost:
    """See :class:`~stepwell.serving.engine.host.EngineHost`. Its thread survives whatever a step throws, so it is never
    lost; but it shares the interpreter's lock with everything else in the process."""

    def __init__(self, engine: Engine, cost_model: StepCostModel, name: str) -> None:
        self.engine = engine
        self._correction, self._answer_way = cost_model.correction, cost_model.answer_way
        self._toll = cost_model.toll
        self._loop = EngineLoop(engine, name=f"stepwell-engine-{name}")

    def start(self, loop: asyncio.AbstractEventLoop, on_lost: OnLost) -> None:
        self._loop.start()

    def stop(self, drain_s: float = 0.0) -> None:
        self._loop.stop(drain_s)

    async def submit(self, job: Job, sink: Sink) -> None:
        self.engine.submit(job, sink)

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id)

    def answer_took(self, seconds: float) -> None:
        self._answer_way.observe([seconds])

    def turned_away(self) -> None:
        self._toll.calls_came(self.engine.now())

    @property
    def num_waiting(self) -> int:
        return self.engine.num_waiting

    @property
    def num_running(self) -> int:
        return self.engine.num_running

    @property
    def cache_usage_ratio(self) -> float:
        return self.engine.cache_usage_ratio

    @property
    def backlog_s(self) -> float:
        return self.engine.backlog_s

    @property
    def call_toll_s(self) -> float:
        return self._toll.call_s

    def prediction_error(self, kind: str) -> float:
        return self._correction.error(kind)

    def prediction_coverage(self, kind: str) -> float:
        return self._correction.coverage(kind)

    def prediction_slowness(self, kind: str) -> float:
        return self._correction.median(kind)
