"""Calls over real gRPC servers with their limits set low, and over a peer that writes frames by hand."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import grpc
import pytest

from stepwell.serving.grpc import hpack
from stepwell.serving.grpc.calls import Calls
from stepwell.serving.grpc.replies import Reply, reply_of

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(option=.., ..)``: the address of a server whose Echo answers what it was sent, piece by piece."""
    servers = []

    def echo(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield request
            yield b""
            yield request[::-1]

    def start(behave: Callable[..., Any] = echo, **options: Any) -> str:
        server = grpc.server(ThreadPoolExecutor(8), options=[(f"grpc.{key}", value) for key, value in options.items()])
        handler = grpc.stream_stream_rpc_method_handler(behave)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.A", {"Echo": handler}),))
        port = server.add_insecure_port("localhost:0")
        server.start()
        servers.append(server)
        return f"localhost:{port}"

    yield start
    for server in servers:
        server.stop(None)


def call(address: str, *messages: bytes, timeout_s: float = 20.0, **options: Any) -> list[Reply]:
    with closing(Calls(address, "/a.A/Echo", timeout_s, **options)) as calls:
        calls.connect(20.0)
        exchanges = [calls.send(message) for message in messages]
        calls.finish()
        assert calls.num_open == 0
        return [reply_of(exchange) for exchange in exchanges]


def test_messages_arrive_whole_and_in_order(serve):
    messages = [bytes([i]) * i for i in range(50)]
    for message, reply in zip(messages, call(serve(), *messages, num_connections=3), strict=True):
        assert reply.status == "OK"
        assert [data for _, data in reply.messages] == [message, b"", message[::-1]]
        times = [at_s for at_s, _ in reply.messages]
        assert times == sorted(times)


def test_messages_larger_than_every_window(serve):
    large = bytes(range(256)) * 12_000
    address = serve(**{"max_receive_message_length": -1, "http2.lookahead_bytes": 1024, "http2.bdp_probe": 0})
    for reply in call(address, large, b"small", large):
        assert reply.status == "OK"
    (reply,) = call(address, large)
    assert [len(data) for _, data in reply.messages] == [len(large), 0, len(large)]
    assert reply.messages[0][1] == large


def test_a_limit_on_streams_is_waited_for(serve):
    replies = call(serve(max_concurrent_streams=2), *[b"x"] * 20)
    assert [reply.status for reply in replies] == ["OK"] * 20


def test_what_waits_for_a_stream_expires_too(serve):
    release = threading.Event()

    def stall(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        release.wait(20.0)
        yield b""

    replies = call(serve(stall, max_concurrent_streams=1), b"x", b"y", timeout_s=0.2)
    release.set()
    assert [reply.status for reply in replies] == ["DEADLINE_EXCEEDED"] * 2


def test_words_and_metadata_of_a_status(serve):
    def refuse(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.set_trailing_metadata((("reason", "none"),))
        context.abort(grpc.StatusCode.ABORTED, "100 % größer\n" * 50)
        yield b""

    (reply,) = call(serve(refuse), b"x")
    assert (reply.status, reply.message, reply.messages) == ("ABORTED", "100 % größer\n" * 50, [])
    assert reply.trailers["reason"] == "none"


def test_a_call_may_end_before_it_was_heard_out(serve):
    def refuse(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.abort(grpc.StatusCode.ABORTED, "no")
        yield b""

    replies = call(serve(refuse), bytes(10_000_000), b"x", bytes(10_000_000))
    assert {reply.status for reply in replies} <= {"ABORTED", "RESOURCE_EXHAUSTED"}


def test_a_connection_that_the_server_ends_is_renewed(serve):
    address = serve(max_connection_age_ms=300, max_connection_age_grace_ms=10_000)
    with closing(Calls(address, "/a.A/Echo", 20.0)) as calls:
        calls.connect(20.0)
        first = calls.send(b"x")
        (connection,) = calls._connections
        until_s = time.monotonic() + 20.0
        while (not connection.closing or time.monotonic() < connection.opened_s + 1.0) and time.monotonic() < until_s:
            calls.wait(time.monotonic() + 0.05)
        second = calls.send(b"y")
        calls.finish()
        assert connection is not calls._connections[0]
        assert [reply_of(exchange).status for exchange in (first, second)] == ["OK", "OK"]


def test_a_method_that_is_not_there(serve):
    with closing(Calls(serve(), "/a.A/Other", 20.0)) as calls:
        calls.connect(20.0)
        exchange = calls.send(b"")
        calls.finish()
        assert reply_of(exchange).status == "UNIMPLEMENTED"


def test_addresses_that_lead_nowhere():
    for address in ("localhost", "localhost:x", "localhost:1"):
        with closing(Calls(address, "/a.A/Echo", 1.0)) as calls, pytest.raises(OSError, match=r"address|refused"):
            calls.connect(0.1)


class Peer:
    """A server that writes what it is told to: ``script`` gives the bytes after a request has come."""

    def __init__(self, script: bytes, settings: bytes = b"") -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._script, self._settings = script, settings
        self.heard = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._listener.accept()[0].close()  # the search for an address that answers
        connection, _ = self._listener.accept()
        with connection:
            connection.sendall(frame(SETTINGS, 0, 0, self._settings))
            while b"hello" not in self.heard:
                self.heard += connection.recv(65536)
            for i in range(len(self._script)):
                connection.sendall(self._script[i : i + 1])
            connection.settimeout(0.3)
            try:
                while data := connection.recv(65536):
                    self.heard += data
            except OSError:
                pass

    def stop(self) -> None:
        self._thread.join(20.0)
        self._listener.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def answered(script: bytes, settings: bytes = b"") -> tuple[Reply, bytes]:
    """Reply to one call, and what the peer heard."""
    peer = Peer(script, settings)
    (reply,) = call(peer.address, b"hello", timeout_s=10.0)
    peer.stop()
    return reply, peer.heard


OK = hpack.encode([("grpc-status", "0")], index=False)
HEAD = frame(HEADERS, 0x4, 1, hpack.encode([(":status", "200"), ("content-type", "application/grpc")], index=False))
END = frame(HEADERS, 0x5, 1, OK)
MESSAGE = b"\0" + struct.pack(">I", 4) + b"data"


@pytest.mark.parametrize(
    "script",
    [
        HEAD + frame(DATA, 0, 1, MESSAGE) + END,
        HEAD + frame(DATA, 0, 1, MESSAGE[:3]) + frame(DATA, 0, 1, MESSAGE[3:7]) + frame(DATA, 0, 1, MESSAGE[7:]) + END,
        HEAD + frame(DATA, 0x8, 1, b"\3" + MESSAGE + bytes(3)) + END,
        HEAD + frame(DATA, 0, 1, MESSAGE) + frame(HEADERS, 0x1, 1, OK[:3]) + frame(CONTINUATION, 0x4, 1, OK[3:]),
        HEAD + frame(DATA, 0, 1, MESSAGE) + frame(HEADERS, 0x2D, 1, b"\2" + bytes(5) + OK + bytes(2)),
        HEAD + frame(99, 0xFF, 7, b"?") + frame(DATA, 0, 9, MESSAGE) + frame(DATA, 0, 1, MESSAGE) + END,
    ],
    ids=["plain", "in pieces", "padded", "continued", "padded trailers", "of no concern"],
)
def test_frames_of_every_shape(script):
    reply, _ = answered(script)
    assert reply.status == "OK"
    assert [data for _, data in reply.messages] == [b"data"]


def refused(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", 7))


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (HEAD + frame(RST_STREAM, 0, 1, struct.pack(">I", 8)), "CANCELLED", "error 8"),
        (b"".join(refused(stream) for stream in (1, 3, 5, 7, 9, 11)), "UNAVAILABLE", "error 7"),
        (frame(HEADERS, 0x5, 1, hpack.encode([(":status", "503")], index=False)), "UNAVAILABLE", "HTTP status 503"),
        (HEAD + frame(DATA, 1, 1, b""), "UNKNOWN", "without a gRPC status"),
        (HEAD + frame(DATA, 0, 1, MESSAGE[:6]) + END, "INTERNAL", "cut after 6 bytes"),
        (HEAD + frame(DATA, 0, 1, b"\1" + MESSAGE[1:]) + END, "INTERNAL", "compressed"),
        (HEAD + frame(HEADERS, 0x5, 1, b"\xff\x80"), "INTERNAL", "header block"),
        (frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0) + b"enough"), "UNAVAILABLE", "enough"),
        (HEAD, "UNAVAILABLE", "closed by the server"),
    ],
)
def test_endings_that_are_not_as_they_should_be(script, status, words):
    reply, _ = answered(script)
    assert reply.status == status
    assert words in reply.message


def test_a_refused_stream_is_opened_again():
    answer = frame(HEADERS, 0x4, 5, hpack.encode([(":status", "200")], index=False)) + frame(DATA, 0, 5, MESSAGE)
    reply, heard = answered(refused(1) + refused(3) + answer + frame(HEADERS, 0x5, 5, OK))
    assert (reply.status, [data for _, data in reply.messages]) == ("OK", [b"data"])
    assert heard.count(b"hello") == 3


def test_pings_and_settings_are_answered():
    _, heard = answered(frame(PING, 0, 0, b"are you?") + HEAD + frame(DATA, 0, 1, MESSAGE) + END)
    assert frame(PING, 1, 0, b"are you?") in heard
    assert frame(SETTINGS, 1, 0, b"") in heard


def test_a_server_without_a_header_table_gets_every_header():
    _, heard = answered(HEAD + END, settings=struct.pack(">HI", 1, 0))
    assert b"\x20\x00\x07:method\x04POST" in heard


def test_what_does_not_speak_http2_is_found_out():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calls = Calls(f"127.0.0.1:{listener.getsockname()[1]}", "/a.A/Echo", 1.0)
        with closing(calls), pytest.raises(OSError, match=r"no answer of HTTP/2 within 0\.1 s"):
            calls.connect(0.1)
