"""What server and engine process say to each other, as msgpack: a stream of lists, the first item says of what kind.

Server to engine: OPEN, then any number of SUBMIT, CANCEL, DELIVERED and TURNED_AWAY, then STOP. Engine to server:
OPENED or FAILED, then ANSWER to every SUBMIT, and EVENTS. The end of the stream means that the other side is gone. Both
sides are of one release and one machine: times are on its monotonic clock.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

import msgpack
import numpy as np

from stepwell.models.sampling import SamplingParams
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.engine.events import FinishEvent, Outcome, Report, ResultEvent, TokenEvent
from stepwell.serving.engine.job import Array, GenerationJob, Job, OneShotJob
from stepwell.serving.engine.observer import StepObservation
from stepwell.serving.engine.step import ItemResult
from stepwell.serving.errors import RefusedError, RequestError, Status

OPEN, SUBMIT, CANCEL, STOP, OPENED, FAILED, ANSWER, EVENTS, DELIVERED, TURNED_AWAY = range(10)
"""OPEN, settings; SUBMIT, job; CANCEL, request id; STOP, seconds to drain; DELIVERED, how long answers were under way;
TURNED_AWAY, number of calls that were refused unasked; OPENED; FAILED, why;
ANSWER, request id, refusal or None; EVENTS, tokens, whole answers, ends, step or None, gauges."""
_TOKEN_IDS = "i"
_slo_fields = attrgetter(*[field.name for field in fields(SLO)])

Packed = Sequence[Any]
"""Something of ours as a plain list."""


def pack(kind: int, *items: Any) -> bytes:
    """One message."""
    return bytes(msgpack.packb((kind, *items)))


def reader() -> msgpack.Unpacker:
    """Feed it what was received; iterate over it for whole messages, lists as tuples."""
    return msgpack.Unpacker(use_list=False, max_buffer_size=0)


def from_job(job: Job) -> Packed:
    """A job and the request in it, before any progress."""
    request = _from_request(job.request)
    if isinstance(job, OneShotJob):
        return request, [_from_array(item) for item in job.items], job.outputs
    ids, sampling = array(_TOKEN_IDS, job.prompt_ids).tobytes(), tuple(vars(job.sampling).values())
    return request, ids, sampling, job.stop, job.ignore_eos


def to_job(packed: Packed, points: Mapping[str, OperatingPoint]) -> Job:
    """The inverse; ``points`` are all of the model's, by name."""
    request = _to_request(packed[0], points)
    if len(packed) == 3:
        _, items, outputs = packed
        return OneShotJob(request, tuple([_to_array(item) for item in items]), outputs)
    _, ids, sampling, stop, ignore = packed
    return GenerationJob(request, tuple(array(_TOKEN_IDS, ids)), SamplingParams(*sampling), stop, ignore)


def _from_request(request: Request) -> Packed:
    return (
        request.request_id,
        request.arrival_s,
        _slo_fields(request.slo),
        [point.name for point in request.points],
        request.prompt_tokens,
        request.max_tokens,
        request.hard_deadline_s,
        request.queue_deadline_s,
        request.unit_tokens,
        request.reach_tokens,
        request.may_switch,
    )


def _to_request(packed: Packed, points: Mapping[str, OperatingPoint]) -> Request:
    name, arrival_s, slo, point_names, prompt, most, hard_s, queue_s, unit, reach, may_switch = packed
    return Request(
        request_id=name,
        arrival_s=arrival_s,
        slo=SLO(*slo),
        points=tuple([points[point] for point in point_names]),
        prompt_tokens=prompt,
        max_tokens=most,
        hard_deadline_s=hard_s,
        queue_deadline_s=queue_s,
        unit_tokens=unit,
        reach_tokens=reach,
        may_switch=may_switch,
    )


def _from_array(values: Array) -> Packed:
    return values.dtype.str, values.shape, values.tobytes()


def _to_array(packed: Packed) -> Array:
    dtype, shape, data = packed
    values: Array = np.frombuffer(data, dtype).reshape(shape)
    return values


def from_token(event: TokenEvent) -> Packed:
    """New output of a request."""
    return event.request_id, event.token_ids, event.text, event.logprobs


def to_token(packed: Packed) -> TokenEvent:
    """The inverse."""
    return TokenEvent(*packed)


def from_result(event: ResultEvent) -> Packed:
    """The whole answer to a request."""
    items = [([_from_array(values) for values in item.arrays], item.tokens_kept) for item in event.items]
    return event.request_id, event.outputs, items


def to_result(packed: Packed) -> ResultEvent:
    """The inverse."""
    request_id, outputs, items = packed
    results = [ItemResult(tuple([_to_array(values) for values in arrays]), kept) for arrays, kept in items]
    return ResultEvent(request_id, outputs, results)


def from_finish(event: FinishEvent) -> Packed:
    """The end of a request."""
    error, report = event.error and from_error(event.error), tuple(vars(event.report).values())
    return event.request_id, event.outcome.value, event.finish_reason, error, report, event.drop_reason


def to_finish(packed: Packed) -> FinishEvent:
    """The inverse."""
    name, outcome, reason, error, report, drop_reason = packed
    return FinishEvent(name, Outcome(outcome), reason, error and to_error(error), Report(*report), drop_reason)


def from_error(error: RequestError) -> Packed:
    """What a client is told."""
    refusal = (error.reason, error.missing_s, error.num_steps) if isinstance(error, RefusedError) else ()
    return error.code.value, error.message, error.retry_after_ms, refusal


def to_error(packed: Packed) -> RequestError:
    """The inverse."""
    code, message, retry_after_ms, refusal = packed
    if not refusal:
        return RequestError(Status(code), message, retry_after_ms)
    return RefusedError(Status(code), message, retry_after_ms, *refusal)


def from_step(step: StepObservation) -> Packed:
    """A step as measured."""
    return tuple(vars(step).values())


def to_step(packed: Packed) -> StepObservation:
    """The inverse."""
    return StepObservation(*packed)


def unfinished_report(request: Request, now: float) -> Report:
    """Of a request whose engine is gone: all that is known outside of it."""
    deadline_s = request.slo.deadline_s
    return Report(
        operating_point="",
        quality=0.0,
        slo_ms=deadline_s * 1e3 if deadline_s < math.inf else None,
        predicted_ms=None,
        queue_ms=0.0,
        compute_ms=0.0,
        total_ms=(now - request.arrival_s) * 1e3,
        slo_met=False,
        degraded=False,
        ttft_ms=None,
        tpot_ms=None,
        prompt_tokens=request.prompt_tokens,
        generated_tokens=0,
        cached_tokens=0,
        tokens_per_level={},
    )
