"""Calls of one gRPC method over a few connections, none of which waits for another: one thread, one ``select``."""

from __future__ import annotations

import math
import select
import socket
import time
from collections import deque
from collections.abc import Sequence

from stepwell.serving.grpc.http2 import Connection, Exchange, Peer

_RETRY_S = 0.05
"""Between attempts to reach a server at the start."""
_RECONNECT_S = 1.0
"""A connection that is lost sooner than this is not renewed yet; requests on it fail meanwhile."""
_MOST_TIMEOUT_DIGITS = 8


class Calls:
    """``send`` starts a call; ``wait`` and ``finish`` take in what comes. Nothing else moves any data."""

    def __init__(
        self,
        address: str,
        method: str,
        timeout_s: float,
        *,
        num_connections: int = 1,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """``address``: ``host:port``. ``method``: ``/package.Service/Method``. ``timeout_s``: deadline of each call,
        from when it is sent; the server is told."""
        self._address, self._timeout_s = address, timeout_s
        self._headers = [*_headers(address, method, timeout_s), *metadata]
        self._num_connections = num_connections
        self._peer: Peer | None = None
        self._connections: list[Connection] = []
        self._draining: list[Connection] = []
        """Take no more calls, but have some."""
        self._turn = 0
        self._calls: deque[tuple[float, Connection, Exchange]] = deque()
        """With their deadlines, in the order they were sent, which is that of the deadlines. What is over leaves at
        the front."""

    def connect(self, timeout_s: float) -> None:
        """Open all connections and wait until they are up. Raises OSError if they are not within the time."""
        until_s = time.monotonic() + timeout_s
        while True:
            left_s = until_s - time.monotonic()
            try:
                self._peer = _reach(self._address, max(0.01, left_s))
                break
            except OSError:
                if left_s < _RETRY_S:
                    raise
                time.sleep(_RETRY_S)
        self._connections = [Connection(self._peer, self._headers) for _ in range(self._num_connections)]
        while not all(connection.ready for connection in self._connections):
            lost = next((c.closing for c in self._connections if c.closing), "")
            if lost or time.monotonic() >= until_s:
                raise OSError(lost or f"no answer of HTTP/2 within {timeout_s:g} s")
            self._step(until_s)

    @property
    def num_open(self) -> int:
        """Calls that are not over."""
        return sum(connection.num_open for connection in (*self._connections, *self._draining))

    def send(self, message: bytes) -> Exchange:
        """Start a call with one message, serialised. Connections take turns."""
        self._turn = (self._turn + 1) % len(self._connections)
        connection = self._connections[self._turn]
        if connection.closing:
            connection = self._renewed(connection)
        exchange = Exchange(message)
        self._calls.append((time.monotonic() + self._timeout_s, connection, exchange))
        connection.send(exchange)
        return exchange

    def _renewed(self, connection: Connection) -> Connection:
        assert self._peer is not None, "connect comes first"
        if time.monotonic() < connection.opened_s + _RECONNECT_S:
            return connection
        if connection.num_open:
            self._draining.append(connection)
        else:
            connection.close()
        self._connections[self._turn] = Connection(self._peer, self._headers)
        return self._connections[self._turn]

    def wait(self, until_s: float) -> None:
        """Take in what comes until then (monotonic clock)."""
        while True:
            self._step(until_s)
            if time.monotonic() >= until_s:
                return

    def finish(self) -> None:
        """Take in what comes until all calls are over; their deadlines bound it."""
        while (deadline_s := self._oldest_deadline_s()) < math.inf:
            self._step(deadline_s)

    def _oldest_deadline_s(self) -> float:
        """Of the calls that are not over; inf without any. Gives up on those that are past it."""
        calls = self._calls
        while calls:
            deadline_s, connection, exchange = calls[0]
            if not exchange.over_s:
                if deadline_s > time.monotonic():
                    return deadline_s
                connection.cancel(exchange)
            calls.popleft()
        return math.inf

    def _step(self, until_s: float) -> None:
        """Sleep until something comes, a call expires, or it is time."""
        until_s = min(until_s, self._oldest_deadline_s())
        live = [c for c in (*self._connections, *self._draining) if c.fileno() >= 0]
        writing = [connection for connection in live if connection.wants_to_write]
        readable, writable, _ = select.select(live, writing, (), max(0.0, until_s - time.monotonic()))
        for connection in writable:
            connection.flush()
        for connection in readable:
            connection.receive()
        for drained in [connection for connection in self._draining if not connection.num_open]:
            drained.close()
            self._draining.remove(drained)

    def close(self) -> None:
        """Close the connections; calls in progress end."""
        for connection in (*self._connections, *self._draining):
            connection.close()


def _headers(address: str, method: str, timeout_s: float) -> list[tuple[str, str]]:
    milliseconds = min(max(1, round(timeout_s * 1e3)), 10**_MOST_TIMEOUT_DIGITS - 1)
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", address),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "stepwell-bench"),
        ("grpc-timeout", f"{milliseconds}m"),
    ]


def _reach(address: str, timeout_s: float) -> Peer:
    """The first of the address's meanings that takes connections. Raises OSError."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise OSError(f"address must be HOST:PORT, got {address!r}")
    with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as found:
        return found.family, found.getpeername()
