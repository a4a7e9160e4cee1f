"""A server in a thread of the calling process: for demonstrations, notebooks, benchmarks and tests."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import TracebackType

from stepwell.serving.app import Server
from stepwell.serving.event_loop import new_event_loop


class BackgroundServer:
    """``with BackgroundServer(Server(config)) as running: Client(running.address)``."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stepwell-server", daemon=True)

    @property
    def address(self) -> str:
        """``host:port`` of gRPC."""
        return f"{self.server.config.host}:{self.server.grpc_port}"

    def start(self) -> None:
        """Start and wait until it serves. Raises what :meth:`Server.start` raises."""
        self._thread.start()
        try:
            self._call(self.server.start()).result()
        except BaseException:
            self._end()
            raise

    def stop(self, grace_s: float = 0.0) -> None:
        """Stop and wait; admitted requests have ``grace_s`` seconds to finish."""
        self._call(self.server.stop(grace_s)).result()
        self._end()

    def _call(self, coroutine: object) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)  # type: ignore[arg-type]

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> BackgroundServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
