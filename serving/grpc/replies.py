"""What came back on a connection, as gRPC means it: status, words, metadata, messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import grpc

from stepwell.serving.grpc import hpack
from stepwell.serving.grpc.http2 import Exchange

_STATUSES = {str(code.value[0]): code.name for code in grpc.StatusCode}
_OF_RESET = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
"""Error code of HTTP/2 -> status, as gRPC's specification maps them; any other is INTERNAL."""
_OF_HTTP = {
    "400": "INTERNAL", "401": "UNAUTHENTICATED", "403": "PERMISSION_DENIED", "404": "UNIMPLEMENTED",
    "429": "UNAVAILABLE", "502": "UNAVAILABLE", "503": "UNAVAILABLE", "504": "UNAVAILABLE",
}  # fmt: skip
"""Status of HTTP -> that of gRPC, for answers without one; any other is UNKNOWN."""


@dataclass(frozen=True)
class Reply:
    """How a call ended."""

    status: str
    """Name of the gRPC status."""
    message: str = ""
    messages: Sequence[tuple[float, bytes]] = ()
    """Time (monotonic clock) at which each response was complete, and its bytes."""
    trailers: Mapping[str, str] = field(default_factory=dict)
    """Metadata that came with the status."""


def reply_of(exchange: Exchange) -> Reply:
    """Decode an exchange that is over."""
    assert exchange.over_s, "still under way"
    if exchange.given_up:
        return Reply("DEADLINE_EXCEEDED", "Deadline Exceeded")
    if exchange.lost:
        return Reply("UNAVAILABLE", exchange.lost)
    try:
        trailers = dict(hpack.decode(exchange.trailers))
        messages = list(_messages(exchange.pieces))
    except ValueError as error:
        return Reply("INTERNAL", str(error))
    if "grpc-status" in trailers:
        status = _STATUSES.get(trailers["grpc-status"], "UNKNOWN")
        return Reply(status, unquote(trailers.get("grpc-message", "")), messages, trailers)
    if exchange.reset is not None:
        return Reply(_OF_RESET.get(exchange.reset, "INTERNAL"), f"stream reset with error {exchange.reset} of HTTP/2")
    http = (dict(hpack.decode(exchange.head)) | trailers).get(":status", "")
    return Reply(_OF_HTTP.get(http, "UNKNOWN"), f"ended without a gRPC status (HTTP status {http})")


def _messages(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The length-prefixed messages in a stream of data. Raises ValueError for what cannot be read."""
    left = b""
    for at_s, piece in pieces:
        left = left + piece if left else piece
        while len(left) >= 5:
            end = 5 + int.from_bytes(left[1:5], "big")
            if len(left) < end:
                break
            if left[0]:
                raise ValueError("response: compressed, which was not offered")
            yield at_s, left[5:end]
            left = left[end:]
    if left:
        raise ValueError(f"response: cut after {len(left)} bytes of a message")
