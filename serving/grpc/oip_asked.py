"""What a message of the Open Inference Protocol asks for, as far as it can be seen without reading it as a call.

Only to recognise what has just been refused, see :mod:`stepwell.serving.verdicts`: a prompt of token ids whose length,
and everything else beside its ids, is written in the message. Whatever is not plain is left to be read.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from stepwell.serving.data_plane import DataPlane
from stepwell.serving.grpc.status import Context
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.served_model import ServedModel
from stepwell.serving.verdicts import slo_metadata

_ID_BYTES = 8


def wishes_in(request: pb.ModelInferRequest, metadata: Mapping[str, str]) -> Hashable:
    """Equal for messages that differ in nothing but their size, the prompt and the request's id."""
    parameters = frozenset([(k, v.SerializeToString()) for k, v in request.parameters.items() if k != "max_tokens"])
    outputs = tuple(output.SerializeToString() for output in request.outputs)
    return parameters, outputs, slo_metadata(metadata)


def size_in(request: pb.ModelInferRequest, vocab_size: int) -> tuple[int, int] | None:
    """Tokens of the prompt, and to generate at most. None unless both are plain and the ids are the model's."""
    inputs, raw, most = request.inputs, request.raw_input_contents, request.parameters.get("max_tokens")
    if len(inputs) != 1 or len(raw) != 1 or most is None or most.int64_param < 1:
        return None
    tensor, num_tokens = inputs[0], len(raw[0]) // _ID_BYTES
    if tensor.name != "input_ids" or tensor.datatype != "INT64" or tensor.HasField("contents") or tensor.parameters:
        return None
    if not num_tokens or list(tensor.shape) != [num_tokens] or len(raw[0]) % _ID_BYTES:
        return None
    ids = np.frombuffer(raw[0], "<i8")
    if ids.min() < 0 or ids.max() >= vocab_size:
        return None
    return num_tokens, most.int64_param


def refuse_as_before(
    plane: DataPlane, served: ServedModel, request: pb.ModelInferRequest, metadata: Mapping[str, str], context: Context
) -> None:
    """Raise what the engine has just answered to a request like this, before it is read."""
    if not served.verdicts.any or (size := size_in(request, served.hosted.vocab_size)) is None:
        return
    came_s = plane.arrivals.now()
    plane.refuse_as_before(served, wishes_in(request, metadata), size, context.time_remaining(), came_s)
