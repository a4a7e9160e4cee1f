"""What stands between every call and its service: malformed messages are refused, errors become statuses.

Services raise :class:`RequestError`; whatever else escapes them is logged and told as INTERNAL, without its text. A
message that cannot be parsed is INVALID_ARGUMENT; gRPC itself would show the exception.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from stepwell.serving.errors import RequestError, Status
from stepwell.serving.grpc.status import Context, abort, as_request_error


class Malformed:
    """Stands in for a message that could not be parsed; only streams of messages ever see it."""

    error = RequestError(
        Status.INVALID_ARGUMENT,
        "message: not valid protobuf of the method's request type (text must be UTF-8); check the client's stubs",
    )


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Wraps the handler of every method, once."""

    def __init__(self) -> None:
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The guarded handler of a method; None, which gRPC answers as UNIMPLEMENTED, stays None."""
        method = handler_call_details.method
        if method in self._guarded:
            return self._guarded[method]
        handler = await continuation(handler_call_details)
        if handler is not None:
            handler = self._guarded[method] = _guard(handler, method)
        return handler


def _guard(handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    if handler.request_streaming and inspect.isasyncgenfunction(handler.stream_stream):
        return handler  # reflection, which answers for itself
    parse = _tolerant(handler.request_deserializer)
    if handler.request_streaming:
        behavior = _answering(handler.stream_stream, method)
        return grpc.stream_stream_rpc_method_handler(behavior, parse, handler.response_serializer)
    if handler.response_streaming:
        behavior = _answering(handler.unary_stream, method)
        return grpc.unary_stream_rpc_method_handler(behavior, parse, handler.response_serializer)
    behavior = _answering(handler.unary_unary, method)
    return grpc.unary_unary_rpc_method_handler(behavior, parse, handler.response_serializer)


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def tolerant(data: bytes) -> Any:
        try:
            return parse(data)
        except Exception:
            return Malformed()

    return tolerant


def _answering(behavior: Callable[[Any, Context], Awaitable[Any]], method: str) -> Callable[[Any, Context], Any]:
    async def answering(request: Any, context: Context) -> Any:
        try:
            if isinstance(request, Malformed):
                raise request.error
            return await behavior(request, context)
        except grpc.aio.BaseError:  # the service ended the call itself, or the connection is gone
            raise
        except Exception as error:
            failure = as_request_error(error, method)
        return await abort(context, failure)

    return answering
