"""Metrics and health over HTTP: ``/metrics`` (Prometheus text), ``/healthz`` (the process answers), ``/readyz``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

logger = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 10.0


class _Inner(ThreadingHTTPServer):
    daemon_threads = True
    registry: CollectorRegistry
    not_ready_because: Callable[[], str]


class _Handler(BaseHTTPRequestHandler):
    server: _Inner
    timeout = _REQUEST_TIMEOUT_S
    """A connection that sends nothing for so long is closed, so that idle clients do not hold threads."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, encode(self.server.registry), content_type)
        elif path == "/healthz":
            self._answer(200, b"ok\n")
        elif path == "/readyz":
            problem = self.server.not_ready_because()
            self._answer(503 if problem else 200, f"{problem or 'ok'}\n".encode())
        else:
            self._answer(404, b"not found; try /metrics, /healthz or /readyz\n")

    do_HEAD = do_GET  # noqa: N815 (the name http.server calls)

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, template: str, *args: Any) -> None:
        logger.debug("http %s " + template, self.client_address[0], *args)


class HttpServer:
    """The HTTP port, served by its own threads."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, not_ready_because: Callable[[], str]) -> None:
        """``not_ready_because`` returns why the server takes no requests now, or an empty text. Port 0 = any free.

        Raises OSError if the port cannot be had.
        """
        self._server = _Inner((host, port), _Handler)
        self._server.registry = registry
        self._server.not_ready_because = not_ready_because
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="stepwell-http", daemon=True
        )

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
