"""Messages of the Open Inference Protocol <-> calls and chunks of the data plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from stepwell.serving.call import GenerateCall, generation_options
from stepwell.serving.engine.events import FinishEvent
from stepwell.serving.errors import invalid
from stepwell.serving.grpc.oip_asked import wishes_in
from stepwell.serving.grpc.tensors import BYTES, TensorSpec, decode_inputs, encode
from stepwell.serving.handoff import Chunk
from stepwell.serving.parameters import TRITON_EMPTY_FINAL, TRITON_FINAL, ParameterValue, flag
from stepwell.serving.pb import inference_pb2 as pb

INPUTS: Mapping[str, TensorSpec] = {
    "text": TensorSpec("text", BYTES, (1,)),
    "input_ids": TensorSpec("input_ids", "INT64", (-1,)),
}
OUTPUTS: Mapping[str, TensorSpec] = {
    "text": TensorSpec("text", BYTES, (1,)),
    "output_ids": TensorSpec("output_ids", "INT64", (-1,)),
    "logprobs": TensorSpec("logprobs", "FP32", (-1,)),
}
_ON_REQUEST = frozenset({"logprobs"})
TOKENS_AT = "tokens_at_"
"""Prefix of the response parameters that count tokens per operating point: ``tokens_at_depth:3`` (int64)."""


def to_python(parameters: Mapping[str, pb.InferParameter]) -> dict[str, ParameterValue]:
    """Protocol parameters -> plain values."""
    values: dict[str, ParameterValue] = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise invalid(key, "has no value", None, "set one of the *_param fields")
        values[key] = getattr(parameter, choice)
    return values


def output_names(request: pb.ModelInferRequest, has_text: bool) -> tuple[str, ...]:
    """The outputs to answer with: those requested, or all but those that exist on request only."""
    known = [name for name in OUTPUTS if has_text or name != "text"]
    if not request.outputs:
        return tuple(name for name in known if name not in _ON_REQUEST)
    names: list[str] = []
    for i, output in enumerate(request.outputs):
        if output.name not in known:
            raise invalid(f"outputs[{i}].name", "unknown output", output.name, f"request some of {sorted(known)}")
        if output.name in names:
            raise invalid(f"outputs[{i}].name", "the same output twice", output.name, "request each output once")
        names.append(output.name)
    return tuple(names)


def to_call(
    request: pb.ModelInferRequest,
    outputs: Sequence[str],
    metadata: Mapping[str, str],
    time_remaining_s: float | None,
) -> GenerateCall:
    """A generation request -> call. Raises RequestError (INVALID_ARGUMENT)."""
    tensors = decode_inputs(request, INPUTS)
    if len(tensors) != 1:
        raise invalid("inputs", "exactly one of 'text' and 'input_ids' is needed", sorted(tensors), "send one of them")
    parameters = to_python(request.parameters)
    options = generation_options(parameters, logprobs="logprobs" in outputs)
    ids = tensors.get("input_ids")
    return GenerateCall(
        model=request.model_name,
        text=as_text(tensors["text"][0]) if "text" in tensors else None,
        input_ids=None if ids is None else np.asarray(ids).tolist(),
        max_tokens=options.max_tokens,
        sampling=options.sampling,
        stop=options.stop,
        ignore_eos=options.ignore_eos,
        lossless=options.lossless,
        parameters=parameters,
        metadata=metadata,
        time_remaining_s=time_remaining_s,
        wishes=partial(wishes_in, request, metadata),
    )


def as_text(value: bytes) -> str:
    """An element of the input ``text``. Raises RequestError (INVALID_ARGUMENT)."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not valid UTF-8 at byte {error.start}"
        raise invalid("input 'text'", problem, value[error.start : error.start + 8], "send UTF-8 text") from None


def wants_empty_final(request: pb.ModelInferRequest) -> bool:
    """Whether the end of a stream of responses is to be told by an extra response without outputs."""
    if TRITON_EMPTY_FINAL not in request.parameters:
        return False
    return flag(TRITON_EMPTY_FINAL, to_python(request.parameters)[TRITON_EMPTY_FINAL])


def to_response(
    request: pb.ModelInferRequest, version: str, chunk: Chunk, outputs: Sequence[str]
) -> pb.ModelInferResponse:
    """A chunk -> response with the named outputs; the report as parameters if the chunk is the last."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=version, id=request.id)
    for name in outputs:
        values: Sequence[object] = {
            "text": [chunk.text.encode()], "output_ids": chunk.token_ids, "logprobs": chunk.logprobs or ()
        }[name]  # fmt: skip
        datatype = OUTPUTS[name].datatype
        response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
        response.raw_output_contents.append(encode(datatype, values))
    if chunk.finish is not None:
        add_report(response, chunk.finish)
    return response


def add_report(response: pb.ModelInferResponse, finish: FinishEvent) -> None:
    """What was served -> response parameters. Values that do not apply are left out."""
    report, parameters = finish.report, response.parameters
    for key in ("quality", "slo_ms", "predicted_ms", "queue_ms", "compute_ms", "total_ms"):
        _add_number(parameters, key, getattr(report, key))
    if report.tokens_kept is not None:
        parameters["tokens"].int64_param = report.prompt_tokens
        parameters["tokens_kept"].int64_param = report.tokens_kept
    else:
        _add_generation(parameters, finish)
    parameters["operating_point"].string_param = report.operating_point
    parameters["slo_met"].bool_param = report.slo_met
    parameters["degraded"].bool_param = report.degraded


def _add_generation(parameters: Any, finish: FinishEvent) -> None:
    report = finish.report
    for key in ("ttft_ms", "tpot_ms"):
        _add_number(parameters, key, getattr(report, key))
    for key in ("prompt_tokens", "generated_tokens", "cached_tokens"):
        parameters[key].int64_param = getattr(report, key)
    for point, count in report.tokens_per_level.items():
        parameters[TOKENS_AT + point].int64_param = count
    parameters["finish_reason"].string_param = finish.finish_reason


def _add_number(parameters: Any, key: str, value: float | None) -> None:
    if value is not None and math.isfinite(value):
        parameters[key].double_param = value


def mark_final(response: pb.ModelInferResponse, final: bool) -> None:
    """Say whether this is the last response of its request."""
    response.parameters[TRITON_FINAL].bool_param = final
