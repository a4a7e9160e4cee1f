"""What every protocol calls: named models, requests checked and handed to their engines, answers streamed back."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from stepwell.schedulers.request import Request
from stepwell.serving.call import GenerateCall
from stepwell.serving.config import ServerConfig
from stepwell.serving.courier import Arrivals
from stepwell.serving.engine.host import EngineHost
from stepwell.serving.engine.job import GenerationJob, Job, OneShotJob
from stepwell.serving.engine.points import allowed_points, may_switch
from stepwell.serving.errors import RefusedError, RequestError, Status, invalid, not_found
from stepwell.serving.handoff import Chunk, Mailbox
from stepwell.serving.hosted import HostedModel
from stepwell.serving.metrics import Metrics
from stepwell.serving.predict_call import PredictCall
from stepwell.serving.predict_job import predict_input, wanted_outputs
from stepwell.serving.prompt import choose_max_tokens, pinned_point, prompt_ids
from stepwell.serving.served_model import VERSION, ModelState, ServedModel
from stepwell.serving.slo import ParsedSLO, hard_deadline, parse_slo, stated_class
from stepwell.serving.verdicts import Asked, Verdicts, wishes_of

Call: TypeAlias = GenerateCall | PredictCall

_log = logging.getLogger(__name__)


class DataPlane:
    """Hosts models. Lives on one event loop; every method is called there."""

    def __init__(
        self,
        models: Iterable[ServedModel],
        config: ServerConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` is the engines' clock."""
        self.models = {served.name: served for served in models}
        self.draining = False
        self.arrivals = Arrivals(clock)
        """Whoever takes calls in says so here, before anything else."""
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._numbers = itertools.count(1)
        # Loading and draining take long: a thread for each model, none of them one that tokenises.
        self._reloading: set[asyncio.Task[None]] = set()
        self._workers = ThreadPoolExecutor(max(1, len(self.models)), thread_name_prefix="stepwell-load")

    async def start(self) -> None:
        """Load every model. Raises ValueError if one cannot be opened."""
        for served in self.models.values():
            await self._load(served)

    def drain(self) -> None:
        """Take no new requests from now on (UNAVAILABLE); those admitted go on."""
        self.draining = True

    async def stop(self, grace_s: float) -> None:
        """Drain, give admitted requests ``grace_s`` seconds, end the rest, unload everything."""
        self.drain()
        await asyncio.gather(*(self._unload(served, grace_s) for served in self.models.values()))
        self._workers.shutdown()

    def not_ready_because(self) -> str:
        """Why no requests are taken now; empty if they are. Safe to call from any thread."""
        if self.draining:
            return "draining"
        return "; ".join(
            f"model {served.name!r}: {served.reason}"
            for served in self.models.values()
            if served.state is not ModelState.READY
        )

    def accepts(self, served: ServedModel) -> bool:
        """Whether a request to this model would be taken now."""
        return not self.draining and served.state is ModelState.READY

    def model(self, name: str, version: str = "") -> ServedModel:
        """A configured model; empty version = newest. Raises RequestError (NOT_FOUND)."""
        if name not in self.models:
            raise not_found("model", name, f"use one of {sorted(self.models)}")
        if version not in ("", VERSION):
            raise not_found("model_version", version, f"use {VERSION!r} or leave it empty")
        return self.models[name]

    async def load(self, name: str) -> None:
        """Load a configured model that is not loaded. Raises RequestError."""
        served = self.model(name)
        if self.draining:
            raise _draining()
        try:
            await self._load(served)
        except ValueError as error:
            raise RequestError(Status.INTERNAL, f"model: {name!r} could not be loaded: {error}") from error

    async def unload(self, name: str) -> None:
        """Finish what a model has admitted, within the grace time, and free it. Raises RequestError (NOT_FOUND)."""
        await self._unload(self.model(name), self._config.grace_s)

    async def _load(self, served: ServedModel) -> None:
        loop = asyncio.get_running_loop()
        async with served.changing:
            if served.state is not ModelState.READY:
                await loop.run_in_executor(self._workers, served.load, loop, partial(self._lost, served), self.arrivals)

    def _lost(self, served: ServedModel, reason: str) -> None:
        """Load it again, for as long as that takes."""
        _log.error("model %s: %s; loading it again", served.name, reason)
        served.lost(reason)
        task = asyncio.get_running_loop().create_task(self._reload(served))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload(self, served: ServedModel) -> None:
        for delay_s in itertools.chain((0.0, 1.0, 5.0), itertools.repeat(30.0)):
            await asyncio.sleep(delay_s)
            if self.draining or served.state is not ModelState.UNAVAILABLE:
                return
            try:
                await self._load(served)
            except Exception:
                _log.exception("model %s: cannot be loaded again yet", served.name)
            else:
                return

    async def _unload(self, served: ServedModel, grace_s: float) -> None:
        async with served.changing:
            if served.loaded:
                await asyncio.get_running_loop().run_in_executor(self._workers, served.unload, grace_s)

    async def complete(self, call: Call) -> Chunk:
        """Compute and return the whole answer. Raises RequestError; cancelling the task frees the request."""
        async with _Ticket(self, call, whole=True) as ticket:
            return await ticket.next()

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Compute and yield output as it comes; the last chunk carries the report.

        Raises RequestError. Cancelling the task or closing the generator frees the request at the engine's next step.
        """
        async with _Ticket(self, call, whole=False) as ticket:
            while not ticket.finished:
                yield await ticket.next()

    async def submit(self, call: Call, whole: bool) -> tuple[EngineHost, str, Mailbox]:
        """Check a call and hand it to its model's engine. Returns that, the request's id there, and where its output
        arrives."""
        arrival_s = self._clock()
        served = self.model(call.model)
        with self._counting_refusals(served, call, arrival_s):
            if self.draining:
                raise _draining()
            wishes = wishes_of(call) if isinstance(call, GenerateCall) else None
            if isinstance(call, GenerateCall):
                await served.verdicts.settled(wishes)
                await self._refuse_as_before(served, call, wishes, arrival_s)
            job = await self._job(served, call, arrival_s)
            host = served.hosted.host
            mailbox = Mailbox(served.hub, whole=whole)
            if isinstance(call, GenerateCall):
                await self._ask(served, call, wishes, job, mailbox)
            else:
                await host.submit(job, mailbox.sink)
        served.statistics.request_prepared(self._clock() - arrival_s)
        return host, job.request.request_id, mailbox

    async def _ask(self, served: ServedModel, call: GenerateCall, wishes: Hashable, job: Job, mailbox: Mailbox) -> None:
        with served.verdicts.asking(wishes):
            try:
                await served.hosted.host.submit(job, mailbox.sink)
            except RefusedError as refusal:
                self._learn(served.verdicts, call, wishes, job.request, refusal)
                raise

    def _learn(
        self, verdicts: Verdicts, call: GenerateCall, wishes: Hashable, request: Request, refusal: RefusedError
    ) -> None:
        asked = Asked(wishes, request.prompt_tokens, request.max_tokens, request.arrival_s, request.hard_deadline_s)
        slo_class, now = request.slo.slo_class, self._clock()
        verdicts.learn(asked, slo_class, refusal, now)
        if call.wishes is not None:
            verdicts.learn(asked._replace(wishes=call.wishes()), slo_class, refusal, now)

    def refuse_as_before(
        self,
        served: ServedModel,
        wishes: Hashable,
        size: tuple[int, int],
        time_remaining_s: float | None,
        came_s: float,
    ) -> None:
        """Raise, and count, the error that the engine would raise, if it has just refused a call like this.

        ``size``: tokens of the prompt and to generate at most, checked.
        """
        if not self.accepts(served):
            return
        margin_s, margin_ratio = self._config.deadline_margin_ms / 1000.0, self._config.deadline_margin_ratio
        asked = Asked(wishes, *size, came_s, hard_deadline(time_remaining_s, came_s, margin_s, margin_ratio))
        now = self._clock()
        if (verdict := served.verdicts.on(asked, now)) is not None:
            refusal, slo_class = verdict
            served.statistics.request_refused(now - came_s)
            self._metrics.refused(served.name, slo_class, refusal.reason)
            served.hosted.host.turned_away()
            raise refusal

    async def _refuse_as_before(
        self, served: ServedModel, call: GenerateCall, wishes: Hashable, arrival_s: float
    ) -> None:
        if wishes not in served.verdicts or not self.accepts(served):
            return
        hosted = served.hosted
        num_tokens = len(await prompt_ids(hosted, call, self._config.max_prompt_bytes))
        size = num_tokens, choose_max_tokens(hosted, served.config, num_tokens, call.max_tokens)
        self.refuse_as_before(served, wishes, size, call.time_remaining_s, arrival_s)

    async def _job(self, served: ServedModel, call: Call, arrival_s: float) -> Job:
        hosted, config = served.hosted, self._config
        if isinstance(call, GenerateCall) != (hosted.predictor is None):
            remedy = "generate with a model that does, and classify, segment or encode with one of these"
            raise invalid("model", f"{served.name!r} does not take such requests", f"one to {hosted.task}", remedy)
        parsed = parse_slo(
            time_remaining_s=call.time_remaining_s,
            metadata=call.metadata,
            parameters=call.parameters,
            classes=config.slo_classes,
            default_class=served.config.default_slo_class,
            now=arrival_s,
            margin_s=config.deadline_margin_ms / 1000.0,
            margin_ratio=config.deadline_margin_ratio,
        )
        request_id = f"{served.name}-{next(self._numbers)}"
        if isinstance(call, PredictCall):
            return await self._predict_job(served, hosted, call, parsed, request_id, arrival_s)
        pinned = pinned_point(hosted.ladders, parsed, call.lossless)
        points = allowed_points(hosted.points, hosted.ladders, parsed.slo.min_quality, pinned)
        ids = await prompt_ids(hosted, call, config.max_prompt_bytes)
        request = Request(
            request_id=request_id,
            arrival_s=arrival_s,
            slo=parsed.slo,
            points=points,
            prompt_tokens=len(ids),
            max_tokens=choose_max_tokens(hosted, served.config, len(ids), call.max_tokens),
            hard_deadline_s=parsed.hard_deadline_s,
            queue_deadline_s=parsed.queue_deadline_s,
            may_switch=may_switch(hosted.ladders, points),
        )
        return GenerationJob(request, ids, call.sampling, call.stop, call.ignore_eos)

    async def _predict_job(
        self,
        served: ServedModel,
        hosted: HostedModel,
        call: PredictCall,
        parsed: ParsedSLO,
        request_id: str,
        arrival_s: float,
    ) -> OneShotJob:
        outputs = wanted_outputs(hosted, call)
        points = allowed_points(
            hosted.points, hosted.ladders, parsed.slo.min_quality, parsed.operating_point, parsed.token_budget
        )
        found = await predict_input(hosted, call, self._config.max_prompt_bytes)
        self._metrics.padding_avoided(served.name, found.padding_avoided)
        request = Request(
            request_id=request_id,
            arrival_s=arrival_s,
            slo=parsed.slo,
            points=points,
            prompt_tokens=found.num_tokens,
            max_tokens=1,
            hard_deadline_s=parsed.hard_deadline_s,
            queue_deadline_s=parsed.queue_deadline_s,
            unit_tokens=found.unit_tokens,
            reach_tokens=found.reach_tokens,
        )
        return OneShotJob(request, found.items, outputs)

    @contextmanager
    def _counting_refusals(self, served: ServedModel, call: Call, arrival_s: float) -> Iterator[None]:
        try:
            yield
        except RefusedError:
            raise
        except RequestError as error:
            served.statistics.request_refused(self._clock() - arrival_s)
            if error.code is Status.UNAVAILABLE:
                reason = "draining" if self.draining else "not_ready"
                classes, default = self._config.slo_classes, served.config.default_slo_class
                slo_class = stated_class(call.metadata, call.parameters, classes, default)
                self._metrics.refused(served.name, slo_class, reason)
            raise


class _Ticket:
    """One admitted request; leaving the block before its end cancels it."""

    def __init__(self, plane: DataPlane, call: Call, *, whole: bool) -> None:
        self._plane, self._call, self._whole = plane, call, whole
        self.finished = False

    async def __aenter__(self) -> _Ticket:
        self._host, self._request_id, self._mailbox = await self._plane.submit(self._call, self._whole)
        return self

    async def next(self) -> Chunk:
        """Wait for more output. Raises the request's error if it ended without an answer."""
        chunk = await self._mailbox.next()
        self.finished = chunk.finish is not None
        if chunk.finish is not None and chunk.finish.error is not None:
            raise chunk.finish.error
        return chunk

    async def __aexit__(self, *exc_info: object) -> None:
        if not self.finished:
            self._host.cancel(self._request_id)


def _draining() -> RequestError:
    return RequestError(Status.UNAVAILABLE, "server: draining, takes no new requests; retry on another one")
