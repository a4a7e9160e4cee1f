"""Runs the demonstration: a real server on loopback, one client thread a request, all sent at once over gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import partial

from stepwell.models.ladder import SubNetwork
from stepwell.schedulers.request import Request
from stepwell.serving.app import Server
from stepwell.serving.background import BackgroundServer
from stepwell.serving.cli.demo_load import PROMPTS, Wish, mixed_load
from stepwell.serving.cli.output import CommandError, say
from stepwell.serving.client import Client
from stepwell.serving.client_types import ModelDescription, Report, RequestFailedError
from stepwell.serving.config import ModelConfig, ServerConfig, SLOClass
from stepwell.serving.engine.events import FinishEvent
from stepwell.serving.engine.observer import EngineObserver, StepObservation
from stepwell.serving.engine_process.host import open_in_process
from stepwell.serving.hosted import HostedModel, OpenModel

PATIENCE_S = 300.0
"""For all answers together; then something is broken."""


@dataclass(frozen=True)
class Answer:
    """What one request got."""

    wish: Wish
    text: str
    report: Report | None
    """None if it was not served to its end."""
    error: RequestFailedError | None
    client_ms: float
    """From sending the request until the end of its answer, as the client saw it."""

    @property
    def outcome(self) -> str:
        """``met``, ``missed``, ``expired`` or ``refused``."""
        if self.report is not None:
            return self.report.outcome
        assert self.error is not None
        return "expired" if self.error.status == "DEADLINE_EXCEEDED" else "refused"


@dataclass(frozen=True)
class StepMix:
    """What one engine step held."""

    num_sequences: int
    points: frozenset[str]
    """Names of the operating points its sequences ran at."""


@dataclass(frozen=True)
class Outcome:
    """The whole run."""

    model: ModelDescription
    classes: Mapping[str, SLOClass]
    """The server's SLO classes."""
    answers: Sequence[Answer]
    """In the order of the requests."""
    steps: Sequence[StepMix]
    seconds: float
    """From sending the first request to the last answer."""
    sub_network_of: Mapping[str, SubNetwork]
    """By name of the operating point. Ladders meet: the top of each is the full model, for example."""

    def count_sub_networks(self, points: Iterable[str]) -> int:
        """How many different sub-networks the operating points of these names are."""
        return len({self.sub_network_of[name] for name in points})

    @property
    def num_served(self) -> int:
        """Different sub-networks that served a request to its end."""
        return self.count_sub_networks(a.report.operating_point for a in self.answers if a.report is not None)

    @property
    def most_in_step(self) -> int:
        """The most different sub-networks that one step computed together."""
        return max(self.count_sub_networks(step.points) for step in self.steps)


class StepWatch:
    """An observer that records which operating points each step mixes, and passes everything on."""

    def __init__(self, inner: EngineObserver) -> None:
        self.steps: list[StepMix] = []
        self._inner = inner

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        self._inner.request_finished(event, request)

    def request_refused(self, event: FinishEvent, request: Request) -> None:
        self._inner.request_refused(event, request)

    def step_finished(self, step: StepObservation) -> None:
        self.steps.append(StepMix(len(step.points), frozenset(step.points)))
        self._inner.step_finished(step)


def run_demo(model: str, num_requests: int, open_model: OpenModel | None = None) -> Outcome:
    """Serve ``model`` and send the mixed load; ``open_model`` as the server's. Raises ValueError if it cannot be
    opened."""
    opened: list[tuple[HostedModel, StepWatch]] = []

    config = ServerConfig(
        threads=1,  # the clients run here too: more threads of a small model's products would wait for each other
        models=(ModelConfig(model),),
        grpc_port=0,
        http_port=0,
        deadline_margin_ms=100.0,  # the server's own words on an early hang-up arrive even where steps take long
        deadline_margin_ratio=0.4,
    )
    open_model = open_model or partial(open_in_process, threads=config.threads, nice=config.engine_nice)

    def open_watched(config: ModelConfig, observer: EngineObserver) -> HostedModel:
        watch = StepWatch(observer)
        hosted = open_model(config, watch)
        opened.append((hosted, watch))
        return hosted

    say(f"loading {model} ...")
    with BackgroundServer(Server(config, open_watched)) as running, Client(running.address) as client:
        name = config.models[0].display_name
        client.complete(name, PROMPTS[0], max_tokens=8)  # the first request of a process finds nothing warm
        description = client.describe(name)
        ((hosted, watch),) = opened
        watch.steps.clear()
        wishes = mixed_load(description, num_requests)
        say(f"gRPC on {running.address}; sending {len(wishes)} requests at once ...")
        started = time.perf_counter()
        answers = send_all(running.address, name, wishes)
        seconds = time.perf_counter() - started
    # Read when the engine has stopped: the last answer leaves a moment before its step is counted.
    sub_network_of = {point: hosted.ladders.subnet(point) for point in hosted.points}
    return Outcome(description, config.slo_classes, answers, tuple(watch.steps), seconds, sub_network_of)


def send_all(address: str, model: str, wishes: Sequence[Wish]) -> list[Answer]:
    """Send every wish from a thread of its own, all at the same moment; returns the answers in order."""
    barrier = threading.Barrier(len(wishes))

    def ask(client: Client, index: int) -> Answer:
        barrier.wait()
        return _ask(client, model, wishes[index], seed=index)

    # The client is closed first: if we leave early, every thread gets an error and ends.
    with ThreadPoolExecutor(len(wishes), thread_name_prefix="client") as threads, Client(address) as client:
        asked = [threads.submit(ask, client, index) for index in range(len(wishes))]
        until = time.monotonic() + PATIENCE_S
        try:
            return [future.result(max(0.0, until - time.monotonic())) for future in asked]
        except FutureTimeoutError as error:
            raise CommandError(f"demo: no answer within {PATIENCE_S:.0f} s; is the machine overloaded?") from error


def _ask(client: Client, model: str, wish: Wish, seed: int) -> Answer:
    pieces, report, failure = [], None, None
    started = time.perf_counter()
    try:
        for chunk in client.generate(
            model, wish.prompt, temperature=0.6, top_p=0.95, seed=seed, ignore_eos=True, **wish.options()
        ):
            pieces.append(chunk.text)
            report = chunk.report
    except RequestFailedError as error:
        failure = error
    return Answer(wish, "".join(pieces), report, failure, (time.perf_counter() - started) * 1e3)
