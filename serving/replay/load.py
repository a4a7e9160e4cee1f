"""The load generator: sends every request of a workload at its time, whatever became of those before (open loop).

A client that waits for answers sends less while the server is slow, so the slowness hides itself (coordinated
omission). Here nothing waits, and every latency counts from when the request was due to be sent: if the generator is
late, the delay counts too. How late it was is in the records.

It shares the machine with the server, so what need not be done during the run is not: all messages are made before it
and stay in memory (8 bytes a token of their prompts; images are shared, and copied as they are sent), answers are read
after it, and no garbage is collected.

What was met is judged by this side's clock; what the server says of the same request is recorded beside it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stepwell.schedulers.request import SLO
from stepwell.serving.config import SLOClass
from stepwell.serving.grpc.http2 import Exchange
from stepwell.serving.grpc.load_wire import Answer, LoadWire, ModelTensors, Value, read_answer
from stepwell.serving.replay.outcomes import LatenessMeter, RequestResult
from stepwell.serving.replay.pictures import Pictures
from stepwell.serving.replay.workload import Arrival, Workload

OUTCOME_OF = {"RESOURCE_EXHAUSTED": "shed", "DEADLINE_EXCEEDED": "expired", "CANCELLED": "cancelled"}
"""gRPC status -> outcome of a request that was not served; any other is ``failed``."""
SLO_AS = ("class", "numbers", "none")
"""How a request tells the server its SLO: by the class's name, by the class's numbers, or not at all."""
_LEAD_S = 0.05
_PROGRESS_S = 10.0
_WORDS = ("the", "one", "of", "all", "and", "out", "for", "was", "with", "that", "from", "have", "this", "time", "what")


@dataclass(frozen=True)
class Target:
    """Where the load goes, and how it is put to that server."""

    address: str
    """``host:port`` of gRPC."""
    model: str
    slo_classes: Mapping[str, SLOClass]
    """What each class of the workload asks for."""
    unary: bool = False
    """One response with the whole answer: cheaper on both sides, but this side sees no token before the last. The first
    token's time is then the server's word, the others' are taken as even; what the server says it missed is missed,
    because here it was later still."""
    slo_as: str = "class"
    """One of :data:`SLO_AS`."""
    text: bool = False
    """Prompts are text, a word for each token, instead of token ids."""
    vocab_size: int = 256
    """Prompts' token ids lie below."""
    quality: float = 1.0
    """Of an answer whose server reports none."""
    timeout_s: float = 60.0
    """Each request's gRPC deadline, from when it is sent."""
    num_connections: int = 4
    whole: bool = False
    """It classifies, segments or encodes what it is sent, and generates nothing; ``unary`` then."""
    outputs: tuple[str, ...] = ()
    """Of a model that answers as a whole: those asked for; none = what it gives."""
    pictures: Pictures | None = None
    """Sent instead of prompts."""
    options: Mapping[str, Value] = field(default_factory=dict)
    """More parameters of every request."""


@dataclass(frozen=True)
class LoadRecord:
    """One request as this side saw it."""

    result: RequestResult
    """Its latencies count from when it was due to be sent."""
    lag_s: float
    """How much later it was really sent."""
    status: str
    """Name of the gRPC status."""
    message: str
    """Why it was not served; empty if it was."""
    slo_met: bool | None
    """The server's verdict; None if it gave none. The next three likewise, in milliseconds."""
    predicted_ms: float | None
    queue_ms: float | None
    server_total_ms: float | None
    """How long the server had the request; of one that it refused, how long the refusal took there."""


@dataclass(frozen=True)
class LoadRun:
    """A whole replay."""

    workload: Workload
    target: Target
    records: Sequence[LoadRecord]
    """In the order of the workload; one for every request of it."""
    duration_s: float
    """From when the first was due until the last was over."""
    cpu_s: float
    """Processor time of this process meanwhile."""

    @property
    def results(self) -> list[RequestResult]:
        return [record.result for record in self.records]


def probe(address: str, model: str, timeout_s: float) -> ModelTensors:
    """What a model takes and gives. Raises NotServedError if the server does not answer in time or lacks the model."""
    with contextlib.closing(LoadWire(address, model, num_connections=1)) as wire:
        return wire.open(timeout_s)


def send_load(workload: Workload, target: Target, on_progress: Callable[[str], None] = lambda text: None) -> LoadRun:
    """Replay ``workload`` on a server. Returns when every request is over, at most its timeout after the last was sent.

    Raises NotServedError if the server cannot be reached at the start or lacks the model; later failures are recorded.
    """
    wire = LoadWire(
        target.address,
        target.model,
        num_connections=target.num_connections,
        unary=target.unary,
        timeout_s=target.timeout_s,
    )
    with contextlib.closing(wire):
        wire.open(target.timeout_s)
        return _Generator(workload, target, wire, on_progress).run()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request under way. Times are of the monotonic clock."""

    due_s: float
    lag_s: float
    exchange: Exchange


class _Generator:
    """One replay."""

    def __init__(self, workload: Workload, target: Target, wire: LoadWire, on_progress: Callable[[str], None]) -> None:
        self._workload, self._target, self._wire, self._on_progress = workload, target, wire, on_progress
        self._slos = {name: slo_of(name, asked) for name, asked in target.slo_classes.items()}
        self._stated = {name: slo_parameters(name, target) for name in target.slo_classes}

    def run(self) -> LoadRun:
        """Send everything at its time, wait for what is still open."""
        messages = self._messages()
        with _no_collection():
            cpu_s, start_s = time.process_time(), time.monotonic() + _LEAD_S
            sent = self._send_all(messages, start_s)
            self._wire.finish()
            duration_s, cpu_s = time.monotonic() - start_s, time.process_time() - cpu_s
        arrivals = enumerate(self._workload.arrivals)
        records = [self._record(number, arrival, one) for (number, arrival), one in zip(arrivals, sent, strict=True)]
        return LoadRun(self._workload, self._target, records, duration_s, cpu_s)

    def _send_all(self, messages: Sequence[tuple[bytes, bytes]], start_s: float) -> list[_Sent]:
        sent: list[_Sent] = []
        next_progress_s = start_s + _PROGRESS_S
        for message, arrival in zip(messages, self._workload.arrivals, strict=True):
            due_s = start_s + arrival.at_s
            self._wire.wait(due_s)
            lag_s = time.monotonic() - due_s
            sent.append(_Sent(due_s, lag_s, self._wire.send(b"".join(message))))
            if due_s >= next_progress_s:
                next_progress_s = due_s + _PROGRESS_S
                self._on_progress(f"{len(sent)} of {len(messages)} sent, {self._wire.num_open} open")
        return sent

    def _messages(self) -> list[tuple[bytes, bytes]]:
        """The two halves of each request."""
        target, wire = self._target, self._wire
        pictures = [wire.body(tensor) for tensor in target.pictures.tensors()] if target.pictures else []
        asked = target.outputs if target.whole else () if target.text else ("output_ids",)
        messages = []
        for number, arrival in enumerate(self._workload.arrivals):
            options = {} if target.whole else {"max_tokens": arrival.output_tokens, "ignore_eos": True}
            head = wire.head(number, {**options, **target.options, **self._stated[arrival.slo_class]}, asked)
            messages.append((head, pictures[number % len(pictures)] if pictures else wire.body(self._prompt(number))))
        return messages

    def _prompt(self, number: int) -> Sequence[int] | str:
        ids = self._workload.prompt_ids(number, self._target.vocab_size)
        return " ".join(_WORDS[token_id % len(_WORDS)] for token_id in ids) if self._target.text else ids

    def _record(self, number: int, arrival: Arrival, sent: _Sent) -> LoadRecord:
        answer = read_answer(sent.exchange, self._target.unary)
        result = self._result(number, arrival, answer, sent)
        verdict = answer.parameters.get("slo_met")
        return LoadRecord(
            result=result,
            lag_s=sent.lag_s,
            status=answer.status,
            message=answer.message,
            slo_met=verdict if isinstance(verdict, bool) else None,
            predicted_ms=_number(answer.parameters, "predicted_ms"),
            queue_ms=_number(answer.parameters, "queue_ms"),
            server_total_ms=_number(answer.parameters, "total_ms"),
        )

    def _result(self, number: int, arrival: Arrival, answer: Answer, sent: _Sent) -> RequestResult:
        if answer.status != "OK":
            outcome, over_s = OUTCOME_OF.get(answer.status, "failed"), sent.exchange.over_s - sent.due_s
            return RequestResult(number, arrival.at_s, arrival.slo_class, outcome, 0.0, over_s)
        total_s = answer.pieces[-1][0] - sent.due_s
        times = [at_s - sent.due_s for at_s, num_tokens in answer.pieces for _ in range(num_tokens)]
        if self._target.unary:
            times = spread(total_s, answer.parameters) or times
        ratio = lateness(self._slos[arrival.slo_class], times, total_s)
        late = ratio is not None and ratio > 1.0
        late = late or (self._target.unary and answer.parameters.get("slo_met") is False)
        quality = _number(answer.parameters, "quality")
        generated = _number(answer.parameters, "generated_tokens")
        return RequestResult(
            arrival=number,
            at_s=arrival.at_s,
            slo_class=arrival.slo_class,
            outcome="missed" if late else "met",
            quality=self._target.quality if quality is None else quality,
            total_s=total_s,
            ttft_s=times[0] if times and not self._target.whole else None,
            tpot_s=(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
            generated_tokens=len(times) if generated is None else int(generated),
            lateness_ratio=ratio,
            operating_point=str(answer.parameters.get("operating_point", "")),
            kept_ratio=kept_ratio(answer.parameters),
        )


def spread(end_s: float, parameters: Mapping[str, Value]) -> list[float]:
    """When the tokens of an answer in one piece came: the first where the server says, counted back from the end so
    that all time outside the server lies before it, the others evenly after it. Empty if it does not say."""
    total_ms, ttft_ms = _number(parameters, "total_ms"), _number(parameters, "ttft_ms")
    num_tokens = int(_number(parameters, "generated_tokens") or 0)
    if total_ms is None or ttft_ms is None or num_tokens < 2:
        return []
    first_s = end_s - (total_ms - ttft_ms) / 1e3
    tpot_s = (end_s - first_s) / (num_tokens - 1)
    return [first_s + tpot_s * i for i in range(num_tokens)]


def kept_ratio(parameters: Mapping[str, Value]) -> float | None:
    """Share of its tokens that a request kept, if the server says."""
    kept, tokens = _number(parameters, "tokens_kept"), _number(parameters, "tokens")
    return kept / tokens if kept is not None and tokens else None


def lateness(slo: SLO, token_times_s: Sequence[float], total_s: float) -> float | None:
    """Largest (latency / latency asked) of an answer whose tokens came at these times; None if nothing was asked."""
    meter = LatenessMeter(slo)
    for at_s in token_times_s:
        meter.token(at_s)
    return meter.finished(total_s)


def slo_of(name: str, asked: SLOClass) -> SLO:
    """A class of the configuration as what a request asks for."""
    deadline_s, ttft_s, tpot_s = (
        math.inf if ms is None else ms / 1e3 for ms in (asked.deadline_ms, asked.ttft_ms, asked.tpot_ms)
    )
    return SLO(name, deadline_s, ttft_s, tpot_s, asked.min_quality or 0.0, asked.priority)


def slo_parameters(name: str, target: Target) -> dict[str, Value]:
    """The request parameters that state a class's SLO."""
    if target.slo_as == "class":
        return {"slo_class": name}
    if target.slo_as == "none":
        return {}
    asked = target.slo_classes[name]
    numbers: dict[str, float | None] = {
        "slo_ms": asked.deadline_ms,
        "ttft_ms": asked.ttft_ms,
        "tpot_ms": asked.tpot_ms,
        "min_quality": asked.min_quality,
    }
    return {key: float(value) for key, value in numbers.items() if value is not None}


def _number(parameters: Mapping[str, Value], key: str) -> float | None:
    value = parameters.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A full collection walks every message and record of the run: tens of milliseconds in which nothing is sent."""
    if not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
