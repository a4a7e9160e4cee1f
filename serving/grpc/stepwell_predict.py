"""Messages of Stepwell's own service <-> calls and answers of models that classify, segment or encode."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from stepwell.serving.engine.job import Array
from stepwell.serving.errors import invalid
from stepwell.serving.grpc.stepwell_converters import objectives, to_report
from stepwell.serving.handoff import Chunk
from stepwell.serving.hosted import HostedModel
from stepwell.serving.pb import stepwell_pb2 as pb
from stepwell.serving.predict_call import PredictCall, Ragged, ragged
from stepwell.serving.predict_job import joined


def to_predict_call(
    request: pb.PredictRequest, metadata: Mapping[str, str], time_remaining_s: float | None
) -> PredictCall:
    """Request -> call. Raises RequestError (INVALID_ARGUMENT)."""
    kind = request.WhichOneof("input")
    return PredictCall(
        model=request.model,
        pixel_values=_to_array(request.pixel_values) if kind == "pixel_values" else None,
        images=list(request.images.files) if kind == "images" else None,
        texts=list(request.texts.texts) if kind == "texts" else None,
        text_pairs=list(request.texts.text_pairs) or None,
        **(_sequences(request.token_ids) if kind == "token_ids" else Ragged())._asdict(),
        outputs=tuple(request.outputs),
        parameters=objectives(request, "min_quality", "operating_point", "token_budget"),
        metadata=metadata,
        time_remaining_s=time_remaining_s,
    )


def _sequences(message: pb.TokenSequences) -> Ragged:
    types = [types.ids for types in message.token_type_ids]
    return ragged([sequence.ids for sequence in message.sequences], types or None)


def to_predict_response(hosted: HostedModel, chunk: Chunk) -> pb.PredictResponse:
    """The answer -> response."""
    assert chunk.result is not None
    assert chunk.finish is not None
    response = pb.PredictResponse(report=to_report(chunk.finish))
    for name, values in joined(hosted, chunk.result).items():
        response.outputs[name].shape.extend(values.shape)
        response.outputs[name].data = np.ascontiguousarray(values, "<f4").tobytes()
    return response


def _to_array(tensor: pb.Tensor) -> Array:
    shape, size = list(tensor.shape), len(tensor.data)
    if any(n < 0 for n in shape) or size != 4 * math.prod(shape):
        problem = f"shape {shape} takes {4 * math.prod(shape)} bytes of float32"
        raise invalid("pixel_values", problem, f"{size} bytes", "make shape and data agree")
    values: Array = np.frombuffer(tensor.data, "<f4").reshape(shape)
    return values
