"""Messages of Stepwell's own service <-> calls, chunks and descriptions of the data plane."""

from __future__ import annotations

import math
from collections.abc import Mapping

from stepwell.models.ladder import Ladder
from stepwell.serving.call import GenerateCall, check_stop, sampling_params
from stepwell.serving.engine.events import FinishEvent, Outcome
from stepwell.serving.handoff import Chunk
from stepwell.serving.hosted import HostedModel
from stepwell.serving.parameters import ParameterValue
from stepwell.serving.pb import stepwell_pb2 as pb
from stepwell.serving.served_model import platform_of

_OUTCOMES = {
    Outcome.MET: pb.OUTCOME_MET,
    Outcome.MISSED: pb.OUTCOME_MISSED,
    Outcome.SHED: pb.OUTCOME_SHED,
    Outcome.EXPIRED: pb.OUTCOME_EXPIRED,
    Outcome.CANCELLED: pb.OUTCOME_CANCELLED,
    Outcome.FAILED: pb.OUTCOME_FAILED,
}
_KV_MODES = {"exact": pb.KV_MODE_EXACT, "approximate": pb.KV_MODE_APPROXIMATE, "static": pb.KV_MODE_STATIC}


def to_call(request: pb.GenerateRequest, metadata: Mapping[str, str], time_remaining_s: float | None) -> GenerateCall:
    """Request -> call. The service-level objective becomes parameters, so that one place checks it.

    Raises RequestError (INVALID_ARGUMENT).
    """
    sampling = request.sampling
    return GenerateCall(
        model=request.model,
        text=request.text if request.HasField("text") else None,
        input_ids=list(request.token_ids.ids) if request.HasField("token_ids") else None,
        max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
        sampling=sampling_params(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            seed=sampling.seed,
            logprobs=sampling.logprobs,
        ),
        stop=check_stop(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        parameters=objectives(request, "min_quality", "operating_point"),
        metadata=metadata,
        time_remaining_s=time_remaining_s,
    )


def objectives(request: pb.GenerateRequest | pb.PredictRequest, *fields: str) -> dict[str, ParameterValue]:
    """The service-level objective and those of ``fields`` that are set, as parameters of the same names."""
    stated: dict[str, ParameterValue] = {
        key: getattr(request.slo, key)
        for key in ("slo_ms", "ttft_ms", "tpot_ms", "slo_class", "priority")
        if request.slo.HasField(key)
    }
    return stated | {key: getattr(request, key) for key in fields if request.HasField(key)}


def to_responses(chunk: Chunk) -> list[pb.GenerateResponse]:
    """The chunk's output, if any, and then the report, if it is the last."""
    responses = []
    if chunk.token_ids or chunk.text:
        content = pb.Chunk(text=chunk.text, token_ids=chunk.token_ids, logprobs=chunk.logprobs or ())
        responses.append(pb.GenerateResponse(chunk=content))
    if chunk.finish is not None:
        responses.append(pb.GenerateResponse(report=to_report(chunk.finish)))
    return responses


def to_report(finish: FinishEvent) -> pb.Report:
    """What was served; values that do not apply are unset."""
    report = finish.report
    message = pb.Report(
        operating_point=report.operating_point,
        quality=report.quality,
        queue_ms=report.queue_ms,
        compute_ms=report.compute_ms,
        total_ms=report.total_ms,
        slo_met=report.slo_met,
        degraded=report.degraded,
        prompt_tokens=report.prompt_tokens,
        generated_tokens=report.generated_tokens,
        cached_tokens=report.cached_tokens,
        tokens_per_level=report.tokens_per_level,
        finish_reason=finish.finish_reason,
        outcome=_OUTCOMES[finish.outcome],
    )
    if report.tokens_kept is not None:
        message.tokens_kept = report.tokens_kept
    for key in ("slo_ms", "predicted_ms", "ttft_ms", "tpot_ms"):
        value = getattr(report, key)
        if value is not None and math.isfinite(value):
            setattr(message, key, value)
    return message


def to_summary(name: str, ready: bool, hosted: HostedModel | None) -> pb.ModelSummary:
    """One line about a model; ``hosted`` is None while it is not loaded."""
    length = hosted.context_length if hosted else 0
    platform = platform_of(hosted)
    return pb.ModelSummary(name=name, platform=platform, ready=ready, context_length=length)


def to_description(name: str, ready: bool, hosted: HostedModel) -> pb.ModelDescription:
    """A model with all its operating points."""
    ladders, metric = hosted.ladders, hosted.ladders.quality_metric
    height, width = (hosted.image_input.height, hosted.image_input.width) if hosted.image_input else (0, 0)
    return pb.ModelDescription(
        name=name,
        platform=platform_of(hosted),
        ready=ready,
        context_length=hosted.context_length,
        vocab_size=hosted.vocab_size,
        default_ladder=ladders.default,
        quality_metric=pb.QualityMetric(**{key: metric[key] for key in ("name", "better", "data") if key in metric}),
        ladders=[_to_ladder(ladder, hosted) for ladder in ladders.ladders.values()],
        task=hosted.task,
        labels=hosted.predictor.labels if hosted.predictor else (),
        image_height=height,
        image_width=width,
    )


def _to_ladder(ladder: Ladder, hosted: HostedModel) -> pb.Ladder:
    message = pb.Ladder(name=ladder.name, kv=_KV_MODES[ladder.kv])
    for k, level in enumerate(ladder.levels):
        name = ladder.point_name(k)
        message.points.add(
            name=name,
            quality=level.quality,
            metric=level.metric,
            cost=hosted.points[name].cost,
            parameters=hosted.parameters_of[name],
            token_budget=level.budget,
        )
    return message
