"""The whole server in one object: models, engines, gRPC, HTTP; and its orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from functools import partial

import torch

from stepwell.serving.config import ServerConfig
from stepwell.serving.data_plane import DataPlane
from stepwell.serving.engine_process.host import open_in_process
from stepwell.serving.grpc.server import GrpcServer
from stepwell.serving.hosted import OpenModel
from stepwell.serving.http import HttpServer
from stepwell.serving.metrics import Metrics
from stepwell.serving.served_model import ServedModel

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CLOSE_S = 2.0
"""Time for answers already given to reach their clients after the engines have stopped."""


class Server:
    """Serves what ``config`` says. ``start``, ``stop`` and ``run`` are coroutines of one event loop."""

    def __init__(self, config: ServerConfig, open_model: OpenModel | None = None) -> None:
        """``open_model`` turns a model's configuration into a hosted model; by default its engine gets a process of its
        own."""
        self.config = config
        open_model = open_model or partial(open_in_process, threads=config.threads, nice=config.engine_nice)
        self.metrics = Metrics(slo_classes=config.slo_classes)
        models = [ServedModel(model, self.metrics, open_model) for model in config.models]
        self.plane = DataPlane(models, config, self.metrics)
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None

    @property
    def grpc_port(self) -> int:
        """The port gRPC is bound to; 0 before ``start``."""
        return self._grpc.port if self._grpc else 0

    @property
    def http_port(self) -> int:
        """The port HTTP is bound to; 0 before ``start``."""
        return self._http.port if self._http else 0

    async def start(self) -> None:
        """Bind both ports, load the models, serve. While models load, health says NOT_SERVING.

        Raises OSError if a port cannot be had, ValueError if a model cannot be opened; then nothing is left running.
        """
        config = self.config
        if config.threads:
            torch.set_num_threads(config.threads)
        try:
            self._http = HttpServer(config.host, config.http_port, self.metrics.registry, self.plane.not_ready_because)
            self._http.start()
            self._grpc = GrpcServer(self.plane, config)
            await self._grpc.start()
            await self.plane.start()
        except BaseException:
            await self.stop(0.0)
            raise

    async def stop(self, grace_s: float | None = None) -> None:
        """Health to NOT_SERVING, admit nothing more, finish what was admitted within ``grace_s`` (default: the
        configured time), answer the rest UNAVAILABLE, close the ports."""
        grace_s = self.config.grace_s if grace_s is None else grace_s
        await self.plane.stop(grace_s)
        if self._grpc is not None:
            await self._grpc.stop(_CLOSE_S)
        if self._http is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._http.stop)

    async def run(self, on_ready: Callable[[Server], None] = lambda server: None) -> None:
        """Start, call ``on_ready``, serve until SIGTERM or SIGINT, stop. A second signal ends the process at once."""
        signalled = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, signalled.set)
        try:
            await self.start()
            on_ready(self)
            await signalled.wait()
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        logger.info("stopping: admitted requests may finish within %g s", self.config.grace_s)
        await self.stop()
