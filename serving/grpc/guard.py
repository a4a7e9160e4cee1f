"""What stands between every call and its service: bad messages are refused, errors become statuses.

Services raise :class:`RequestError`; whatever else escapes them is logged and told as INTERNAL, without its text. A
message above the bound is RESOURCE_EXHAUSTED, one that cannot be parsed INVALID_ARGUMENT; gRPC itself would say of the
first only that it is too large, and show the exception of the second.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any

import grpc

from stepwell.serving.courier import Arrivals
from stepwell.serving.errors import RequestError, Status
from stepwell.serving.grpc.status import Context, abort, as_request_error


class Refused:
    """Stands in for a message that was not parsed; only streams of messages ever see it."""

    def __init__(self, error: RequestError) -> None:
        self.error = error
        """What to answer. One of its own: a raised exception keeps its traceback, and that the frames of its call."""


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Wraps the handler of every method, once."""

    def __init__(self, max_message_bytes: int, arrivals: Arrivals) -> None:
        """Messages of more bytes, counted when unpacked, are refused unparsed. ``arrivals``: told of every call."""
        self._arrivals = arrivals
        self._max_message_bytes = max_message_bytes
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The guarded handler of a method; None, which gRPC answers as UNIMPLEMENTED, stays None."""
        self._arrivals.came()
        method = handler_call_details.method
        if method in self._guarded:
            return self._guarded[method]
        handler = await continuation(handler_call_details)
        if handler is not None:
            handler = self._guarded[method] = _guard(handler, method, self._max_message_bytes)
        return handler


def _guard(handler: Any, method: str, max_message_bytes: int) -> grpc.RpcMethodHandler[Any, Any]:
    parse = _tolerant(handler.request_deserializer, max_message_bytes)
    if handler.request_streaming:
        # Ours writes to its context; reflection, which is not ours, yields.
        wrap = _yielding if inspect.isasyncgenfunction(handler.stream_stream) else _answering
        behavior = wrap(handler.stream_stream, method)
        return grpc.stream_stream_rpc_method_handler(behavior, parse, handler.response_serializer)
    if handler.response_streaming:
        behavior = _answering(handler.unary_stream, method)
        return grpc.unary_stream_rpc_method_handler(behavior, parse, handler.response_serializer)
    behavior = _answering(handler.unary_unary, method)
    return grpc.unary_unary_rpc_method_handler(behavior, parse, handler.response_serializer)


def _tolerant(parse: Callable[[bytes], Any], max_message_bytes: int) -> Callable[[bytes], Any]:
    def tolerant(data: bytes) -> Any:
        if len(data) > max_message_bytes:
            return Refused(_oversize(len(data), max_message_bytes))
        try:
            return parse(data)
        except Exception:
            return Refused(_malformed())

    return tolerant


def _oversize(num_bytes: int, max_message_bytes: int) -> RequestError:
    return RequestError(
        Status.RESOURCE_EXHAUSTED,
        f"message: must be at most {max_message_bytes} bytes, got {num_bytes}; "
        "shorten it or raise max_message_bytes in the server's configuration",
    )


def _malformed() -> RequestError:
    return RequestError(
        Status.INVALID_ARGUMENT,
        "message: not valid protobuf of the method's request type (text must be UTF-8); check the client's stubs",
    )


def _answering(behavior: Callable[[Any, Context], Awaitable[Any]], method: str) -> Callable[[Any, Context], Any]:
    async def answering(request: Any, context: Context) -> Any:
        came_s = time.monotonic()
        try:
            if isinstance(request, Refused):
                raise request.error
            return await behavior(request, context)
        except grpc.aio.BaseError:  # the service ended the call itself, or the connection is gone
            raise
        except Exception as error:
            failure = as_request_error(error, method)
        return await abort(context, failure, time.monotonic() - came_s)

    return answering


def _yielding(behavior: Callable[[Any, Context], AsyncIterable[Any]], method: str) -> Callable[[Any, Context], Any]:
    """For a service that knows nothing of :class:`Refused`: the first one ends the call."""

    async def yielding(requests: AsyncIterable[Any], context: Context) -> AsyncGenerator[Any, None]:
        came_s = time.monotonic()
        try:
            async for response in behavior(_parsed(requests), context):
                yield response
            return
        except grpc.aio.BaseError:
            raise
        except Exception as error:
            failure = as_request_error(error, method)
        await abort(context, failure, time.monotonic() - came_s)

    return yielding


async def _parsed(requests: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    async for request in requests:
        if isinstance(request, Refused):
            raise request.error
        yield request
