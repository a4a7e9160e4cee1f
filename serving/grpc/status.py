"""RequestError -> gRPC status: reason and retry hint both in the message and in trailing metadata.

Some clients show only the message, others read only metadata. Messages are cut, because gRPC carries them in a header
whose size clients limit.
"""

from __future__ import annotations

import logging
from typing import NoReturn, TypeAlias

import grpc

from stepwell.serving.errors import RequestError, Status

logger = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext

RETRY_AFTER_KEY = "retry-after-ms"
REASON_KEY = "x-stepwell-reason"
TOTAL_KEY = "x-stepwell-total-ms"
"""How long the server had a request that it did not serve."""
MAX_MESSAGE_CHARS = 1000
_MAX_REASON_CHARS = 200

_INTERNAL = RequestError(Status.INTERNAL, "internal error; the request was not served, the server's log says why")


def message_of(error: RequestError) -> str:
    """The error's message, cut in the middle if long, with the retry hint."""
    text = error.message
    if len(text) > MAX_MESSAGE_CHARS:
        half = MAX_MESSAGE_CHARS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text if error.retry_after_ms is None else f"{text} (retry after {error.retry_after_ms} ms)"


def trailers_of(error: RequestError, total_s: float) -> tuple[tuple[str, str], ...]:
    """Trailing metadata of an error: the reason in printable ASCII, how long it took the server to say so, and the
    retry hint if there is one."""
    reason = error.message[:_MAX_REASON_CHARS]
    if not (reason.isascii() and reason.isprintable()):
        reason = "".join(c if " " <= c <= "~" else "?" for c in reason)
    trailers = [(REASON_KEY, reason), (TOTAL_KEY, f"{total_s * 1e3:.3f}")]
    if error.retry_after_ms is not None:
        trailers.append((RETRY_AFTER_KEY, str(error.retry_after_ms)))
    return tuple(trailers)


def as_request_error(error: BaseException, where: str) -> RequestError:
    """``error`` itself if clients may see it; anything else is logged and becomes INTERNAL without details."""
    if isinstance(error, RequestError):
        return error
    logger.error("%s failed", where, exc_info=error)
    return _INTERNAL


async def abort(context: Context, error: RequestError, total_s: float) -> NoReturn:
    """End the call, which came ``total_s`` seconds ago, with the error's status."""
    await context.abort(grpc.StatusCode[error.code.name], message_of(error), trailers_of(error, total_s))
    raise AssertionError("abort returned")


def metadata_of(context: Context) -> dict[str, str]:
    """Call metadata by key, the first value of each; binary values are left out."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found.setdefault(key, value)
    return found
