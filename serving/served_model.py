"""One configured model: its state, its engine and thread while it is loaded, its counters for as long as we run."""

from __future__ import annotations

import asyncio
import enum
import time
from functools import partial

from stepwell.schedulers.request import Request
from stepwell.serving.config import ModelConfig
from stepwell.serving.courier import Arrivals
from stepwell.serving.delivery import as_delivered, way_s
from stepwell.serving.engine.events import FinishEvent
from stepwell.serving.engine.host import OnLost
from stepwell.serving.engine.observer import StepObservation
from stepwell.serving.errors import RequestError, Status
from stepwell.serving.handoff import Hub
from stepwell.serving.hosted import HostedModel, OpenModel
from stepwell.serving.hosting import open_in_thread
from stepwell.serving.metrics import Metrics
from stepwell.serving.statistics import Statistics
from stepwell.serving.verdicts import Verdicts

VERSION = "1"
"""The only version a model has."""


class ModelState(enum.Enum):
    """Names of the protocol's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class ServedModel:
    """A model the configuration names. ``load`` and ``unload`` block and run in a worker thread, one at a time."""

    def __init__(self, config: ModelConfig, metrics: Metrics, open_model: OpenModel = open_in_thread) -> None:
        self.config = config
        self.name = config.display_name
        self.state = ModelState.UNAVAILABLE
        self.reason = "not loaded"
        """Why it is in this state, for people; empty if READY."""
        self.statistics = Statistics()
        self.verdicts = Verdicts()
        self.changing = asyncio.Lock()
        """Held while it is loaded or unloaded."""
        self._metrics = metrics
        self._open_model = open_model
        self._hosted: HostedModel | None = None
        self._hub: Hub | None = None

    @property
    def hosted(self) -> HostedModel:
        """What is in memory. Raises RequestError (UNAVAILABLE) if nothing is."""
        if self._hosted is None or self.state is not ModelState.READY:
            message = f"model: {self.name!r} is {self.state.value.lower()}; retry when it is ready"
            raise RequestError(Status.UNAVAILABLE, message)
        return self._hosted

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._hosted is not None

    @property
    def hosted_or_none(self) -> HostedModel | None:
        """What is in memory, whether or not it takes requests."""
        return self._hosted

    @property
    def hub(self) -> Hub:
        """The way of its events to the event loop; set while READY."""
        assert self._hub is not None
        return self._hub

    @property
    def predicts(self) -> bool:
        """Whether it answers as a whole, rather than generates. Told as False while it is not loaded."""
        return self._hosted is not None and self._hosted.predictor is not None

    @property
    def platform(self) -> str:
        """What runs it, in the protocol's terms."""
        return platform_of(self._hosted)

    @property
    def has_text(self) -> bool:
        """False if the checkpoint has no tokenizer: token ids only. Told as True while it is not loaded."""
        return self._hosted is None or self._hosted.tokenizer is not None

    @property
    def cache_bytes(self) -> int:
        """Memory of its key-value cache; 0 while it is not loaded."""
        return self._hosted.cache_bytes if self._hosted else 0

    def load(self, event_loop: asyncio.AbstractEventLoop, on_lost: OnLost, arrivals: Arrivals | None = None) -> None:
        """Read the model and start its engine; ``on_lost``: see the host; ``arrivals``: of the event loop. Raises
        ValueError if it cannot be opened."""
        self.state, self.reason = ModelState.LOADING, "loading"
        hub = Hub(event_loop, arrivals)
        try:
            hosted = self._open_model(self.config, _Observer(self, hub, self._metrics))
        except Exception as error:
            self.state, self.reason = ModelState.UNAVAILABLE, str(error)
            raise
        self._hosted, self._hub = hosted, hub
        self.verdicts.begin()
        hosted.host.start(event_loop, on_lost)
        self._metrics.watch(self.name, hosted.host)
        self.state, self.reason = ModelState.READY, ""

    def unload(self, drain_s: float) -> None:
        """Let admitted requests finish for at most ``drain_s`` seconds, end the rest, and free the memory."""
        assert self._hosted is not None, "not loaded"
        self.state, self.reason = ModelState.UNLOADING, "unloading"
        self._hosted.host.stop(drain_s)
        self._forget("unloaded")

    def lost(self, reason: str) -> None:
        """Its engine is gone, and with it all that it was working on."""
        if self.loaded:
            self._forget(reason)

    def _forget(self, reason: str) -> None:
        self._metrics.unwatch(self.name)
        self._hosted = None
        self.verdicts.forget()
        self.state, self.reason = ModelState.UNAVAILABLE, reason


def platform_of(hosted: HostedModel | None) -> str:
    """What runs a model, in the protocol's terms; ``hosted`` is None while it is not loaded."""
    return "stepwell_decoder" if hosted is None or hosted.predictor is None else f"stepwell_{hosted.task}"


class _Observer:
    """What happens on the engine's thread beside the answers: counting, and waking the event loop once a step. Ends are
    counted on the event loop, as they are delivered."""

    def __init__(self, served: ServedModel, hub: Hub, metrics: Metrics) -> None:
        self._statistics, self._verdicts = served.statistics, served.verdicts
        self._hub = hub
        self._metrics = metrics.observer(served.name)
        self._served = served

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        self._hub.request_over(event, partial(self._delivered, request))

    def _delivered(self, request: Request, event: FinishEvent) -> FinishEvent:
        now = time.monotonic()
        seconds = way_s(event, request, now)
        self._metrics.delivered(seconds, request)
        if (hosted := self._served.hosted_or_none) is not None:
            hosted.host.answer_took(seconds)
        event = as_delivered(event, request, now)
        self._statistics.request_finished(event)
        self._metrics.request_finished(event, request)
        return event

    def request_refused(self, event: FinishEvent, request: Request) -> None:
        self._statistics.request_finished(event)
        self._metrics.request_finished(event, request)

    def step_finished(self, step: StepObservation) -> None:
        self._verdicts.step_ended()
        self._hub.step_committed()
        self._statistics.step_finished()
        self._metrics.step_finished(step)
