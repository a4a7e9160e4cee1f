"""The standard health service (grpc.health.v1), one status per service and per model.

Written out because the packaged asyncio one forgets its other watchers when one of them leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stepwell.serving.grpc.status import Context

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_Status = health_pb2.HealthCheckResponse
_POLL_S = 0.2


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # no types
    """Answers from ``serving()``: name -> whether it takes requests. The empty name is the server as a whole."""

    def __init__(self, serving: Callable[[], Mapping[str, bool]]) -> None:
        self._serving = serving

    async def Check(self, request: Any, context: Context) -> Any:
        """NOT_FOUND for a name that is neither a service nor a model."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service: unknown, got {request.service[:100]!r}")
        return _Status(status=status)

    async def Watch(self, request: Any, context: Context) -> None:
        """The status now, and again whenever it has changed."""
        last = None
        while True:
            if (status := self._status(request.service)) != last:
                await context.write(_Status(status=status))
                last = status
            await asyncio.sleep(_POLL_S)

    def _status(self, name: str) -> Any:
        found = self._serving().get(name)
        if found is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if found else _Status.NOT_SERVING
