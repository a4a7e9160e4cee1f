"""One HTTP/2 connection (RFC 9113) of a gRPC client that spends as little as it can while requests are under way.

A library's call costs several hand-overs between threads for every message, which is more than a token costs our
server. Here a readable socket is one ``recv``, and an arrived frame is one append: bytes and time are kept, and what
they say is decoded when somebody asks, after the run. Requests have one message each. Flow control, limits on streams,
pings, and connections that a server ends are heeded; TLS, compression and pushed responses are not offered.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stepwell.serving.grpc import hpack

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_REFUSED_STREAM, _CANCEL = 7, 8
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_DEFAULT_TABLE = 4096
_REFILL = 2**30
"""Bytes received after which the peer may send as many more."""
_FRAME = struct.Struct(">HBBBI")
"""Length in 2 + 1 bytes, type, flags, stream."""
_MOST_REFUSALS = 5
"""A server counts a stream for a moment after its client has heard the end, and may refuse the next; nothing has been
done about such a request, so it is sent again (RFC 9113, section 8.7). So often refused, it is the server's will."""
_scratch = memoryview(bytearray(1 << 18))
"""What a socket has is read to here: fresh memory of this size for every token would cost more than the token."""


Peer: TypeAlias = tuple[int, Any]
"""Address family and socket address."""


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and what came back for it. Times are of the monotonic clock."""

    message: bytes
    """Of gRPC, serialised; empty once the exchange is over, as images are large."""
    head: bytes = b""
    """Raw header block of the response."""
    trailers: bytes = b""
    """The last header block; of a response without data there is only this one."""
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """Time and content of each piece of data."""
    over_s: float = 0.0
    """When it ended; 0 = it has not."""
    reset: int | None = None
    """Error code of HTTP/2 with which the server ended it."""
    lost: str = ""
    """Why it ended on this side, without a word of the server."""
    refusals: int = 0
    """How often the server would not open a stream for it."""
    given_up: bool = False
    """It was cancelled on this side."""
    stream: int = 0
    unsent: memoryview | None = None
    """The rest of the framed message that the server's window had no room for."""
    window: int = 0


class Connection:
    """Sends requests with one set of headers. The caller watches it with ``select`` and calls :meth:`receive` and
    :meth:`flush`."""

    def __init__(self, peer: Peer, headers: Sequence[tuple[str, str]]) -> None:
        """Returns at once; what was sent leaves when the connection is up."""
        family, address = peer
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self.opened_s = time.monotonic()
        self.ready = False
        """The server has spoken."""
        self.closing = ""
        """Why it takes no more requests; empty if it does."""
        self._headers, self._headers_known, self._may_index = headers, False, True
        self._open: dict[int, Exchange] = {}
        self._queue: deque[Exchange] = deque()
        """Those that the server's limit on streams holds back."""
        self._blocked: list[Exchange] = []
        """Open, not sent entirely."""
        self._next_stream = 1
        self._max_streams, self._max_frame = 1 << 30, 16_384
        self._window, self._stream_window = _DEFAULT_WINDOW, _DEFAULT_WINDOW
        self._received = 0
        self._in, self._out = bytearray(), bytearray()
        self._ends_stream = False
        """Whether the header block that is under way does."""
        settings = ((_HEADER_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW, _LARGEST_WINDOW))
        self._out += _PREFACE + _frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", *entry) for entry in settings))
        self._out += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW))
        self._socket.connect_ex(address)

    def fileno(self) -> int:
        """For ``select``; negative once it is closed."""
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._out)

    @property
    def num_open(self) -> int:
        return len(self._open) + len(self._queue)

    def send(self, exchange: Exchange) -> None:
        """Send a request, or as much of it as the server takes now."""
        if self.closing:
            _end(exchange, self.closing)
        elif len(self._open) >= self._max_streams:
            self._queue.append(exchange)
        else:
            self._start(exchange)
            self.flush()

    def _start(self, exchange: Exchange) -> None:
        stream = exchange.stream = self._next_stream
        self._next_stream += 2
        self._open[stream] = exchange
        self._out += _frame(_HEADERS, _END_HEADERS, stream, self._header_fields())
        exchange.unsent = memoryview(b"\0" + struct.pack(">I", len(exchange.message)) + exchange.message)
        exchange.window = self._stream_window
        if not self._feed(exchange):
            self._blocked.append(exchange)

    def _header_fields(self) -> bytes:
        """They are the same for all requests: the first puts them into the server's table, if that has room."""
        if not self._may_index:
            return hpack.EMPTY_TABLE + hpack.encode(self._headers, index=False)
        if self._headers_known:
            return hpack.indexed(len(self._headers))
        self._headers_known = True
        return hpack.encode(self._headers, index=True)

    def _feed(self, exchange: Exchange) -> bool:
        """Send what fits into the windows; True if that is all."""
        while exchange.unsent is not None:
            room = min(self._window, exchange.window, self._max_frame)
            if room <= 0:
                return False
            piece, rest = exchange.unsent[:room], exchange.unsent[room:]
            self._window -= len(piece)
            exchange.window -= len(piece)
            exchange.unsent = rest if len(rest) else None
            self._out += _frame(_DATA, 0 if len(rest) else _END_STREAM, exchange.stream, piece)
        return True

    def _feed_blocked(self) -> None:
        self._blocked = [exchange for exchange in self._blocked if not self._feed(exchange)]

    def cancel(self, exchange: Exchange) -> None:
        """Give up on a request."""
        exchange.given_up = True
        if self._open.pop(exchange.stream, None) is not None:
            self._out += _frame(_RST_STREAM, 0, exchange.stream, struct.pack(">I", _CANCEL))
            exchange.unsent = None
            self._feed_blocked()
            self._start_queued()
            self.flush()
        elif exchange in self._queue:
            self._queue.remove(exchange)
        _end(exchange, "cancelled")

    def flush(self) -> None:
        """Write what is to be written, as far as the socket takes it."""
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self.close(f"connection lost: {error}")

    def receive(self) -> None:
        """Take in what the socket has."""
        try:
            count = self._socket.recv_into(_scratch)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(f"connection lost: {error}")
            return
        if not count:
            self.close("connection closed by the server")
            return
        now_s = time.monotonic()
        buffer = self._in
        buffer += _scratch[:count]
        at, end = 0, len(buffer)
        while end - at >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(buffer, at)
            until = at + 9 + (high << 8 | low)
            if until > end:
                break
            self._frame(kind, flags, stream & _LARGEST_WINDOW, bytes(buffer[at + 9 : until]), now_s)
            at = until
        del buffer[:at]
        if self._out:
            self.flush()

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes, now_s: float) -> None:
        if kind == _DATA:
            self._received += len(payload)
            if self._received >= _REFILL:
                self._out += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received))
                self._received = 0
            exchange = self._open.get(stream)
            if exchange is not None:
                exchange.pieces.append((now_s, _unpadded(payload) if flags & _PADDED else payload))
                if flags & _END_STREAM:
                    self._over(exchange, now_s)
        elif kind in (_HEADERS, _CONTINUATION):
            self._header_block(kind, flags, stream, payload, now_s)
        elif kind == _RST_STREAM:
            exchange = self._open.get(stream)
            if exchange is not None:
                self._reset(exchange, int.from_bytes(payload, "big"), now_s)
        elif kind == _WINDOW_UPDATE:
            self._more_room(stream, int.from_bytes(payload, "big") & _LARGEST_WINDOW)
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._out += _frame(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            self._going_away(payload)

    def _header_block(self, kind: int, flags: int, stream: int, payload: bytes, now_s: float) -> None:
        if kind == _HEADERS:
            payload = _unpadded(payload) if flags & _PADDED else payload
            payload = payload[5:] if flags & _PRIORITY else payload
        exchange = self._open.get(stream)
        if exchange is None:
            return
        if kind == _HEADERS:
            exchange.head, exchange.trailers = exchange.head or exchange.trailers, payload
            self._ends_stream = bool(flags & _END_STREAM)
        else:
            exchange.trailers += payload
        if flags & _END_HEADERS and self._ends_stream:
            self._over(exchange, now_s)

    def _reset(self, exchange: Exchange, error: int, now_s: float) -> None:
        if error == _REFUSED_STREAM and not self.closing and exchange.refusals < _MOST_REFUSALS:
            exchange.refusals += 1
            exchange.unsent = None
            del self._open[exchange.stream]
            self._queue.appendleft(exchange)
            self._feed_blocked()
            self._start_queued()
        else:
            exchange.reset = error
            self._over(exchange, now_s)

    def _over(self, exchange: Exchange, now_s: float) -> None:
        exchange.over_s, exchange.message = now_s, b""
        if exchange.unsent is not None:  # answered before it was heard out
            self._out += _frame(_RST_STREAM, 0, exchange.stream, struct.pack(">I", _CANCEL))
            exchange.unsent = None
        del self._open[exchange.stream]
        self._start_queued()

    def _start_queued(self) -> None:
        while self._queue and not self.closing and len(self._open) < self._max_streams:
            self._start(self._queue.popleft())

    def _settings(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", payload):
            if key == _MAX_STREAMS:
                self._max_streams = value
            elif key == _MAX_FRAME:
                self._max_frame = value
            elif key == _HEADER_TABLE_SIZE:
                self._may_index = value >= _DEFAULT_TABLE
            elif key == _INITIAL_WINDOW:
                for exchange in self._blocked:
                    exchange.window += value - self._stream_window
                self._stream_window = value
        self._out += _frame(_SETTINGS, _ACK, 0, b"")
        self.ready = True
        self._feed_blocked()
        self._start_queued()

    def _more_room(self, stream: int, num_bytes: int) -> None:
        if stream == 0:
            self._window += num_bytes
        else:
            exchange = self._open.get(stream)
            if exchange is not None:
                exchange.window += num_bytes
        self._feed_blocked()

    def _going_away(self, payload: bytes) -> None:
        """The server ends the streams it has, and takes no more."""
        last, _ = struct.unpack_from(">II", payload)
        self.closing = f"the server closes the connection ({payload[8:].decode('utf-8', 'replace')})"
        refused = [exchange for stream, exchange in self._open.items() if stream > last & _LARGEST_WINDOW]
        for exchange in [*refused, *self._queue]:
            self._open.pop(exchange.stream, None)
            _end(exchange, self.closing)
        self._queue.clear()

    def close(self, why: str = "closed") -> None:
        """Close it; requests that are open end with ``why``."""
        self.closing = self.closing or why
        self._socket.close()
        self._out.clear()
        for exchange in [*self._open.values(), *self._queue]:
            _end(exchange, why)
        self._open.clear()
        self._queue.clear()


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    size = len(payload)
    return b"".join((_FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream), payload))


def _unpadded(payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]]


def _end(exchange: Exchange, why: str) -> None:
    exchange.over_s, exchange.lost, exchange.unsent, exchange.message = time.monotonic(), why, None, b""
