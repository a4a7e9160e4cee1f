"""Messages of the Open Inference Protocol <-> calls and answers of models that classify, segment or encode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stepwell.serving.errors import invalid
from stepwell.serving.grpc.oip_converters import add_report, as_text, to_python
from stepwell.serving.grpc.tensors import BYTES, Tensor, TensorSpec, decode_inputs, encode
from stepwell.serving.handoff import Chunk
from stepwell.serving.hosted import HostedModel
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.predict_call import PredictCall
from stepwell.serving.predict_job import joined, varies

_IMAGE_INPUTS = (
    TensorSpec("pixel_values", "FP32", (-1, 3, -1, -1), (3, -1, -1)),
    TensorSpec("image", BYTES, (-1,)),
)
_TEXT_INPUTS = (
    TensorSpec("text", BYTES, (-1,)),
    TensorSpec("text_pair", BYTES, (-1,)),
    TensorSpec("input_ids", "INT64", (-1,), (-1, -1)),
    TensorSpec("token_type_ids", "INT64", (-1,), (-1, -1)),
    TensorSpec("seq_lens", "INT64", (-1,)),
    TensorSpec("attention_mask", "INT64", (-1, -1)),
)


def inputs_of(hosted: HostedModel) -> list[TensorSpec]:
    """What a model takes: any one of images or texts, in any one form."""
    specs = _IMAGE_INPUTS if hosted.image_input else _TEXT_INPUTS
    return [spec for spec in specs if hosted.tokenizer is not None or spec.name not in ("text", "text_pair")]


def outputs_of(hosted: HostedModel) -> list[TensorSpec]:
    """What it answers, for all items of a request together."""
    assert hosted.predictor is not None
    return [
        TensorSpec(name, "FP32", shape if varies(shape) else (-1, *shape))
        for name, shape in hosted.predictor.outputs.items()
    ]


def to_call(
    request: pb.ModelInferRequest, hosted: HostedModel, metadata: Mapping[str, str], time_remaining_s: float | None
) -> PredictCall:
    """A request -> call. Raises RequestError (INVALID_ARGUMENT)."""
    tensors = decode_inputs(request, {spec.name: spec for spec in inputs_of(hosted)})
    return PredictCall(
        model=request.model_name,
        pixel_values=_array(tensors, "pixel_values"),
        images=_elements(tensors, "image"),
        texts=_texts(tensors, "text"),
        text_pairs=_texts(tensors, "text_pair"),
        input_ids=_array(tensors, "input_ids"),
        token_type_ids=_array(tensors, "token_type_ids"),
        seq_lens=_array(tensors, "seq_lens"),
        attention_mask=_array(tensors, "attention_mask"),
        outputs=_output_names(request, hosted),
        parameters=to_python(request.parameters),
        metadata=metadata,
        time_remaining_s=time_remaining_s,
    )


def _array(tensors: Mapping[str, Tensor], name: str) -> np.ndarray[Any, Any] | None:
    tensor = tensors.get(name)
    return None if tensor is None else np.asarray(tensor)


def _elements(tensors: Mapping[str, Tensor], name: str) -> list[bytes] | None:
    tensor = tensors.get(name)
    assert tensor is None or isinstance(tensor, list)
    return tensor


def _texts(tensors: Mapping[str, Tensor], name: str) -> list[str] | None:
    return None if name not in tensors else [as_text(value) for value in tensors[name]]


def _output_names(request: pb.ModelInferRequest, hosted: HostedModel) -> tuple[str, ...]:
    assert hosted.predictor is not None
    known, names = hosted.predictor.outputs, []
    for i, output in enumerate(request.outputs):
        if output.name not in known:
            raise invalid(f"outputs[{i}].name", "unknown output", output.name, f"request some of {sorted(known)}")
        if output.name in names:
            raise invalid(f"outputs[{i}].name", "the same output twice", output.name, "request each output once")
        names.append(output.name)
    return tuple(names)


def to_response(
    request: pb.ModelInferRequest, version: str, hosted: HostedModel, chunk: Chunk
) -> pb.ModelInferResponse:
    """The answer -> response with its outputs, and the report as parameters."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=version, id=request.id)
    assert chunk.result is not None
    for name, values in joined(hosted, chunk.result).items():
        response.outputs.add(name=name, datatype="FP32", shape=values.shape)
        response.raw_output_contents.append(encode("FP32", values))
    assert chunk.finish is not None
    add_report(response, chunk.finish)
    return response
