"""The load generator's side of the wire: requests of the Open Inference Protocol, one call each, sent without waiting.

What comes is kept as bytes with its time; what it says is read after the run (:func:`read_answer`). A streamed request
has a ModelStreamInfer call of its own: on a shared one, a server that stops reading would hold up the requests behind.
Needs neither torch nor the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from stepwell.serving.grpc.calls import Calls
from stepwell.serving.grpc.http2 import Exchange
from stepwell.serving.grpc.replies import Reply, reply_of
from stepwell.serving.grpc.status import TOTAL_KEY
from stepwell.serving.grpc.tensors import BYTES, TensorSpec, encode
from stepwell.serving.pb import inference_pb2 as pb

Value = bool | int | float | str
_SERVICE = "/inference.GRPCInferenceService/"
_STATUS_PLEASE = (("triton_grpc_error", "true"),)
"""Triton's extension: the error of a streamed request ends the call with a status, not just with words."""


@dataclass(frozen=True)
class Answer:
    """How a request ended."""

    status: str
    """Name of the gRPC status; ``OK`` = all of its output came."""
    message: str = ""
    parameters: Mapping[str, Value] = field(default_factory=dict)
    """Of the last response: what our server reports of the request. Of a request that was not served, ``total_ms`` if
    the server says it."""
    pieces: Sequence[tuple[float, int]] = ()
    """Time (monotonic clock) and number of tokens of each response."""


class ImageTensor(NamedTuple):
    """An image as an input: pixels or a file."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes
    """Raw, as the protocol has it."""


@dataclass(frozen=True)
class ModelTensors:
    """What a model's metadata says of it."""

    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]
    """Names."""


class NotServedError(Exception):
    """The server cannot be reached or does not serve the model. The message says which and what to do."""


class LoadWire:
    """Connections to one model of one server, for one thread."""

    def __init__(
        self, address: str, model: str, *, num_connections: int = 4, unary: bool = False, timeout_s: float = 60.0
    ) -> None:
        """``unary``: ModelInfer, one response with everything in it; else ModelStreamInfer, a response a token.
        ``timeout_s``: gRPC deadline of each request, from when it is sent."""
        self._address, self._model = address, model
        self._batched: frozenset[str] = frozenset()
        """Inputs that are a batch of prompts."""
        method, metadata = ("ModelInfer", ()) if unary else ("ModelStreamInfer", _STATUS_PLEASE)
        self._calls = Calls(address, _SERVICE + method, timeout_s, num_connections=num_connections, metadata=metadata)

    def open(self, timeout_s: float) -> ModelTensors:
        """What the model takes and gives; all connections are up then. Raises NotServedError."""
        reply = self._metadata(timeout_s)
        if reply.status == "OK":
            try:
                self._calls.connect(timeout_s)
                response = pb.ModelMetadataResponse.FromString(reply.messages[-1][1])
                inputs = {t.name: TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in response.inputs}
                self._batched = frozenset(name for name, spec in inputs.items() if len(spec.shape) == 2)
                return ModelTensors(inputs, tuple(tensor.name for tensor in response.outputs))
            except (OSError, DecodeError, IndexError) as error:
                reply = Reply("UNAVAILABLE", str(error))
        raise NotServedError(
            f"server: no model {self._model!r} at {self._address} ({reply.status}: {reply.message}); "
            "check the address, the model's name, and that it speaks the Open Inference Protocol over gRPC"
        )

    def _metadata(self, timeout_s: float) -> Reply:
        calls = Calls(self._address, _SERVICE + "ModelMetadata", timeout_s)
        try:
            calls.connect(timeout_s)
            exchange = calls.send(pb.ModelMetadataRequest(name=self._model).SerializeToString())
            calls.finish()
            return reply_of(exchange)
        except OSError as error:
            return Reply("DEADLINE_EXCEEDED", f"not reached within {timeout_s:g} s: {error}")
        finally:
            calls.close()

    def message(self, number: int, prompt: Sequence[int] | str, parameters: Mapping[str, Value]) -> bytes:
        """The request ``number``, serialised. Of a prompt of token ids, the token ids of the answer are asked for; of a
        text, whatever the model gives."""
        outputs = () if isinstance(prompt, str) else ("output_ids",)
        return self.head(number, parameters, outputs) + self.body(prompt)

    def head(self, number: int, parameters: Mapping[str, Value], outputs: Sequence[str] = ()) -> bytes:
        """The request ``number`` without its input, serialised: with a :meth:`body` behind it, it is whole.
        ``outputs``: the names of those asked for; none = what the model gives."""
        request = pb.ModelInferRequest(model_name=self._model, id=str(number))
        for name in outputs:
            request.outputs.add(name=name)
        for key, value in parameters.items():
            _set(request.parameters[key], value)
        return request.SerializeToString()

    def body(self, given: Sequence[int] | str | ImageTensor) -> bytes:
        """Token ids, a text or an image as the input of a request, serialised. A prompt is in a batch of one where the
        model's metadata says that its input is a batch."""
        request = pb.ModelInferRequest()
        if isinstance(given, ImageTensor):
            request.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
            request.raw_input_contents.append(given.data)
        elif isinstance(given, str):
            request.inputs.add(name="text", datatype=BYTES, shape=[*self._batch("text"), 1])
            request.raw_input_contents.append(encode(BYTES, [given.encode()]))
        else:
            request.inputs.add(name="input_ids", datatype="INT64", shape=[*self._batch("input_ids"), len(given)])
            request.raw_input_contents.append(encode("INT64", given))
        return request.SerializeToString()

    def _batch(self, name: str) -> list[int]:
        """Leading dimensions of an input."""
        return [1] if name in self._batched else []

    def send(self, message: bytes) -> Exchange:
        """Send a request; what becomes of it is seen in :meth:`wait` and :meth:`finish`."""
        return self._calls.send(message)

    def wait(self, until_s: float) -> None:
        """Take in answers until then (monotonic clock)."""
        self._calls.wait(until_s)

    def finish(self) -> None:
        """Take in answers until every request is over."""
        self._calls.finish()

    @property
    def num_open(self) -> int:
        """Requests that are not over."""
        return self._calls.num_open

    def close(self) -> None:
        """Close the connections; requests in progress are cancelled."""
        self._calls.close()


def read_answer(exchange: Exchange, unary: bool) -> Answer:
    """What became of a request that is over."""
    reply = reply_of(exchange)
    if reply.status != "OK":
        return Answer(reply.status, reply.message, _refusal(reply.trailers))
    pieces, last = [], None
    try:
        for at_s, data in reply.messages:
            if unary:
                last = pb.ModelInferResponse.FromString(data)
            else:
                part = pb.ModelStreamInferResponse.FromString(data)
                if part.error_message:
                    return Answer(_status_of(part.error_message), part.error_message, _values(part.infer_response))
                last = part.infer_response
            pieces.append((at_s, _num_tokens(last)))
    except DecodeError as error:
        return Answer("INTERNAL", f"response: not of the protocol ({error})")
    if last is None:
        return Answer("UNKNOWN", "the stream ended without an answer")
    return Answer("OK", "", _values(last), pieces)


def _refusal(trailers: Mapping[str, str]) -> dict[str, Value]:
    try:
        return {"total_ms": float(trailers[TOTAL_KEY])}
    except (KeyError, ValueError):
        return {}


def _set(parameter: pb.InferParameter, value: Value) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def _values(response: pb.ModelInferResponse) -> dict[str, Value]:
    pairs = ((key, value, value.WhichOneof("parameter_choice")) for key, value in response.parameters.items())
    return {key: getattr(value, choice) for key, value, choice in pairs if choice}


def _num_tokens(response: pb.ModelInferResponse) -> int:
    """As many as there are ids; a piece of text counts as one."""
    for output in response.outputs:
        if output.name == "output_ids":
            return int(output.shape[-1]) if output.shape else 0
    return int(bool(response.outputs))


def _status_of(words: str) -> str:
    """The status behind an error told within the stream, by a server that does not know the extension.

    The protocol has no place for it there. Ours ends what it shed with a retry hint.
    """
    if "(retry after " in words:
        return "RESOURCE_EXHAUSTED"
    return "DEADLINE_EXCEEDED" if words.startswith(("deadline:", "timeout:", "slo:")) else "UNKNOWN"
