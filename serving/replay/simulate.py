"""Replaying a workload in virtual time, through the server's own engine and policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from stepwell.models.cache import PagedKVCache
from stepwell.models.ladder import LadderSet
from stepwell.models.sampling import SamplingParams
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Limits, Slice
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.config import DEFAULT_CLASS, SLOClass
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.job import GenerationJob, Job, OneShotJob
from stepwell.serving.engine.points import allowed_points, may_switch
from stepwell.serving.errors import RequestError
from stepwell.serving.replay.counting_cache import CountingCache, CountingEndsError
from stepwell.serving.replay.fleet import ReplicaThread
from stepwell.serving.replay.items import ItemTokens
from stepwell.serving.replay.outcomes import RequestResult, Summary
from stepwell.serving.replay.recorder import Recorder
from stepwell.serving.replay.surroundings import Endpoint, Surroundings
from stepwell.serving.replay.virtual import FaultPlan, SimRunner, VirtualClock
from stepwell.serving.replay.workload import Arrival, Workload
from stepwell.serving.slo import parse_slo

Routing: TypeAlias = Literal["least-loaded", "round-robin"]
"""Which replica an arrival goes to: the one with the fewest requests that are not over, or each in turn."""
FULL_QUALITY = "max_quality"
"""The policy that defines load 1."""
_SAMPLING = SamplingParams()
_ITEMS = (np.empty(0, np.float32),)
"""Of a request that is answered as a whole: one, which nobody looks at."""


@dataclass(frozen=True)
class SimModel:
    """What a simulation knows of a model: what it offers, what that costs, and the cache it has. No weights."""

    ladders: LadderSet
    points: Mapping[str, OperatingPoint]
    """All operating points by name."""
    costs: StepCostModel
    """How long steps take, apart from noise; policies get a copy that learns."""
    num_pages: int
    page_tokens: int
    vocab_size: int
    context_length: int
    items: ItemTokens | None = None
    """Of a model that answers as a whole: each arrival is one item, whose tokens are the arrival's prompt."""
    step_tokens: int = 512
    """Of a step, over all its requests, at most."""

    def item_s(self, num_tokens: int) -> float:
        """Seconds of a step that answers one item of so many tokens at full quality."""
        default = self.ladders.ladders[self.ladders.default]
        best = self.points[default.point_name(len(default.levels) - 1)]
        alone = Request("", 0.0, SLO(), (best,), num_tokens, 1, unit_tokens=num_tokens)
        return self.costs.raw_s([Slice(alone, num_tokens, best)])


@dataclass(frozen=True)
class Setup:
    """Everything about a simulation but its workload."""

    model: SimModel
    policy: str
    classes: Mapping[str, SLOClass] = field(default_factory=lambda: {DEFAULT_CLASS: SLOClass()})
    limits: Limits = field(default_factory=Limits)
    replicas: int = 1
    """Engines, each with a cache and a policy of its own."""
    routing: Routing = "least-loaded"
    noise: float = 0.0
    """Standard deviation of the logarithm of a step's random factor, whose median is 1."""
    seed: int = 0
    faults: FaultPlan | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    """What a real machine adds. The engines share one endpoint."""


@dataclass(frozen=True)
class Replay:
    """What came of a simulation."""

    results: list[RequestResult]
    """One for each arrival, in the order of the workload."""
    duration_s: float
    """From the first arrival to the end of the last request."""
    num_steps: int
    """Steps of all replicas."""
    busy_s: float
    """Their duration."""

    @property
    def summary(self) -> Summary:
        return Summary.of(self.results, self.duration_s)


def simulate(workload: Workload, setup: Setup, max_unfinished: int | None = None) -> Replay:
    """Replay ``workload``.

    With ``max_unfinished`` the loop is closed: requests come in their order, the next one as soon as fewer than so many
    are under way, whatever their times.

    Raises RequestError if a request could never be served by this model (the message says why), RuntimeError if the
    policy leaves requests waiting for ever.
    """
    if not any(arrival.prefix for arrival in workload.arrivals):
        try:
            return _Simulation(workload, setup, CountingCache).run(max_unfinished)
        except CountingEndsError:
            pass
    return _Simulation(workload, setup, _paged_cache).run(max_unfinished)


def _paged_cache(num_layers: int, num_pages: int, page_tokens: int) -> PagedKVCache:
    return PagedKVCache(num_layers, 1, 1, num_pages, page_tokens, with_storage=False)


def capacity(workload: Workload, setup: Setup) -> float:
    """Requests a second that ``setup`` can serve at full quality, for requests like those of ``workload``: how fast it
    works them off if all are there from the start and none has an SLO. This is load 1."""
    unbounded = replace(workload, arrivals=tuple(replace(a, slo_class=DEFAULT_CLASS) for a in workload.arrivals))
    one = replace(
        setup,
        policy=FULL_QUALITY,
        classes={DEFAULT_CLASS: SLOClass()},
        replicas=1,
        faults=None,
        surroundings=replace(setup.surroundings, call_s=0.0, token_s=0.0, toll_s=0.0),
    )
    replay = simulate(unbounded, one, max_unfinished=2 * setup.limits.max_running)
    return setup.replicas * len(replay.results) / replay.duration_s


class _Simulation:
    """One run of :func:`simulate`."""

    def __init__(self, workload: Workload, setup: Setup, make_cache: Callable[[int, int, int], PagedKVCache]) -> None:
        self._workload, self._setup, self._make_cache = workload, setup, make_cache
        self._clock = VirtualClock()
        self._endpoint = Endpoint(setup.surroundings, self._clock)
        self._recorder = Recorder(self._clock, self._endpoint.write)
        self._num_arrived = self._num_submitted = 0
        self._wishes = {name: _Wishes.of(name, setup) for name in {a.slo_class for a in workload.arrivals}}
        self._threads: list[ReplicaThread] = []
        self._engines: list[Engine] = []
        self._num_calls = [0] * setup.replicas
        """That came to each."""

    def run(self, max_unfinished: int | None) -> Replay:
        if max_unfinished is None:
            self._clock.at(self._workload.arrivals[0].at_s, self._arrive)
        else:
            self._recorder.on_end = lambda result: self._clock.at(self._clock.now_s, self._submit_next)
            for _ in range(max_unfinished):
                self._clock.at(0.0, self._submit_next)
        if self._setup.replicas == 1:
            self._run_alone()
        else:
            self._run_fleet()
        if self._recorder.requests:
            num_left = len(self._recorder.requests)
            raise RuntimeError(f"policy {self._setup.policy}: leaves {num_left} requests waiting for ever")
        results = sorted(self._recorder.results, key=lambda result: result.arrival)
        duration_s = max(result.at_s + result.total_s for result in results)
        return Replay(results, duration_s, self._recorder.num_steps, self._recorder.busy_s)

    def _run_alone(self) -> None:
        """One replica needs no thread: its steps let the clock run."""
        self._engines = [self._engine(0, self._clock.advance_to)]

        def idle_until(when_s: float) -> bool:
            until_s = min(when_s, self._clock.next_s)
            if until_s < math.inf:
                self._clock.advance_to(until_s)
            return until_s < math.inf

        self._drive(self._engines[0], idle_until)

    def _run_fleet(self) -> None:
        for number in range(self._setup.replicas):
            self._threads.append(ReplicaThread(self._clock, self._main_of(number)))
            self._engines.append(self._engine(number, self._threads[-1].sleep_until))
        try:
            for thread in self._threads:
                thread.start()
            while self._clock.next_s < math.inf:
                self._clock.advance_to(self._clock.next_s)
        finally:
            for thread in self._threads:
                thread.stop()

    def _main_of(self, number: int) -> Callable[[ReplicaThread], None]:
        return lambda thread: self._drive(self._engines[number], thread.idle_until)

    def _drive(self, engine: Engine, idle_until: Callable[[float], bool]) -> None:
        """What the server's engine loop does, until nothing will happen any more."""
        while engine.step() or idle_until(engine.next_expiry_s):
            pass

    def _engine(self, number: int, sleep_until: Callable[[float], None]) -> Engine:
        setup, model = self._setup, self._setup.model
        layers = model.ladders.architecture.num_layers
        learning = model.costs.of_another_engine()
        self._recorder.answer_ways.append(learning.answer_way)
        runner = SimRunner(
            self._recorder.requests,
            lambda slices: setup.surroundings.seconds(learning.foreseen_s(slices)),
            clock=self._clock,
            sleep_until=sleep_until,
            taken_s=lambda: setup.surroundings.toll_s * self._num_calls[number],
            noise=setup.noise,
            seed=setup.seed * 1000 + number,
            faults=setup.faults,
        )
        return Engine(
            runner=runner,
            cache=self._make_cache(layers, model.num_pages, model.page_tokens),
            policy=create_policy(setup.policy, setup.limits),
            tokenizer=None,
            ladders=model.ladders,
            limits=setup.limits,
            eos_token_ids=(),
            clock=self._clock,
            cost_model=learning,
            observer=self._recorder,
        )

    def _arrive(self) -> None:
        """The next arrival is due; the one after it is put on the calendar."""
        self._num_arrived += 1
        if self._setup.surroundings.call_s:
            self._clock.at(self._endpoint.read(), self._submit_next)
        else:
            self._submit_next()
        if self._num_arrived < len(self._workload):
            self._clock.at(self._workload.arrivals[self._num_arrived].at_s, self._arrive)

    def _submit_next(self) -> None:
        number = self._num_submitted
        if number == len(self._workload):
            return
        self._num_submitted += 1
        replica = self._route(number)
        self._num_calls[replica] += 1
        arrival = self._workload.arrivals[number]
        job = self._job(number, arrival)
        request = job.request
        try:
            self._engines[replica].submit(job, self._recorder.sink(request))
        except RequestError:
            if request.request_id in self._recorder.requests:  # not refused now, but impossible
                raise
        if self._threads:
            self._threads[replica].wake()

    def _job(self, number: int, arrival: Arrival) -> Job:
        wishes, model = self._wishes[arrival.slo_class], self._setup.model
        answers_whole = model.items is not None
        request = Request(
            request_id=str(number),
            arrival_s=arrival.at_s if self._num_arrived else self._clock.now_s,
            slo=wishes.slo,
            points=wishes.points,
            prompt_tokens=arrival.prompt_tokens,
            max_tokens=1 if answers_whole else arrival.output_tokens,
            unit_tokens=arrival.prompt_tokens if answers_whole else 1,
            may_switch=wishes.may_switch and not answers_whole,
        )
        if answers_whole:
            return OneShotJob(request, _ITEMS, ())
        return GenerationJob(request, self._workload.prompt_ids(number, model.vocab_size), _SAMPLING, ignore_eos=True)

    def _route(self, number: int) -> int:
        if self._setup.routing == "round-robin" or len(self._engines) == 1:
            return number % len(self._engines)
        load = [engine.num_waiting + engine.num_running for engine in self._engines]
        return load.index(min(load))


@dataclass(frozen=True)
class _Wishes:
    """What requests of a class ask for, and what they are allowed."""

    slo: SLO
    points: tuple[OperatingPoint, ...]
    may_switch: bool

    @classmethod
    def of(cls, name: str, setup: Setup) -> _Wishes:
        """As the server would read a request that names its class and nothing else. Raises RequestError."""
        slo = parse_slo(
            time_remaining_s=None,
            metadata={},
            parameters={"slo_class": name},
            classes=setup.classes,
            default_class=DEFAULT_CLASS,
            now=0.0,
        ).slo
        ladders = setup.model.ladders
        points = allowed_points(setup.model.points, ladders, slo.min_quality, None)
        return cls(slo, points, may_switch(ladders, points))
