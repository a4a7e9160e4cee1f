"""The load generator's side of the wire: requests of the Open Inference Protocol over ``grpc.aio``, one call each.

A streamed request has a ModelStreamInfer call of its own: on a shared one, a server that stops reading would hold up
the requests behind. Needs neither torch nor the server.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from stepwell.serving.grpc.tensors import BYTES, encode
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
    """Of the last response: what our server reports of the request. Empty if it was not served."""


OnTokens = Callable[[int], None]
"""Called when a response comes, with the number of tokens in it."""


class NotServedError(Exception):
    """The server cannot be reached or does not serve the model. The message says which and what to do."""


class LoadWire:
    """Connections to one model of one server. Lives on one event loop."""

    def __init__(self, address: str, model: str, *, num_connections: int = 4, unary: bool = False) -> None:
        """``unary``: ModelInfer, one response with everything in it; else ModelStreamInfer, a response a token."""
        self._address, self._model = address, model
        # Channels with the same options would share one connection.
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(num_connections)]
        self._send_unary, self._send_stream = self._senders("unary_unary"), self._senders("unary_stream")
        self.send = self._whole if unary else self._streamed
        """``await send(message, timeout_s, on_tokens)``: send, and wait for the :class:`Answer`."""

    def _senders(self, kind: str) -> Callable[[], Any]:
        """The method of each channel in turn. One message is sent, so that ModelStreamInfer needs no stream of them."""
        name, parse = {
            "unary_unary": ("ModelInfer", pb.ModelInferResponse.FromString),
            "unary_stream": ("ModelStreamInfer", pb.ModelStreamInferResponse.FromString),
        }[kind]
        calls = [
            getattr(channel, kind)(_SERVICE + name, pb.ModelInferRequest.SerializeToString, parse)
            for channel in self._channels
        ]
        return itertools.cycle(calls).__next__

    async def inputs(self, timeout_s: float) -> tuple[str, ...]:
        """Names of the model's inputs, once all connections are up. Raises NotServedError."""
        request = pb.ModelMetadataRequest(name=self._model)
        for channel in self._channels:
            call = channel.unary_unary(
                _SERVICE + "ModelMetadata",
                pb.ModelMetadataRequest.SerializeToString,
                pb.ModelMetadataResponse.FromString,
            )
            try:
                metadata = await call(request, timeout=timeout_s, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                raise NotServedError(
                    f"server: no model {self._model!r} at {self._address} ({error.code().name}: {error.details()}); "
                    "check the address, the model's name, and that it speaks the Open Inference Protocol over gRPC"
                ) from error
        return tuple(tensor.name for tensor in metadata.inputs)

    def message(
        self, number: int, prompt: Sequence[int] | str, parameters: Mapping[str, Value]
    ) -> pb.ModelInferRequest:
        """The request ``number``. Of a prompt of token ids, the token ids of the answer are asked for; of a text,
        whatever the model gives."""
        request = pb.ModelInferRequest(model_name=self._model, id=str(number))
        if isinstance(prompt, str):
            request.inputs.add(name="text", datatype=BYTES, shape=[1])
            request.raw_input_contents.append(encode(BYTES, [prompt.encode()]))
        else:
            request.inputs.add(name="input_ids", datatype="INT64", shape=[len(prompt)])
            request.raw_input_contents.append(encode("INT64", prompt))
            request.outputs.add(name="output_ids")
        for key, value in parameters.items():
            _set(request.parameters[key], value)
        return request

    async def _whole(self, message: pb.ModelInferRequest, timeout_s: float, on_tokens: OnTokens) -> Answer:
        try:
            response = await self._send_unary()(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, error.details() or "")
        on_tokens(_num_tokens(response))
        return Answer("OK", "", _values(response))

    async def _streamed(self, message: pb.ModelInferRequest, timeout_s: float, on_tokens: OnTokens) -> Answer:
        last: pb.ModelInferResponse | None = None
        words = ""
        try:
            async for response in self._send_stream()(message, timeout=timeout_s, metadata=_STATUS_PLEASE):
                words = words or response.error_message
                if not words:
                    last = response.infer_response
                    on_tokens(_num_tokens(last))
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, error.details() or "")
        if words:
            return Answer(_status_of(words), words)
        return (
            Answer("UNKNOWN", "the stream ended without an answer") if last is None else Answer("OK", "", _values(last))
        )

    async def close(self) -> None:
        """Close the connections; calls in progress are cancelled."""
        for channel in self._channels:
            await channel.close()


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
