"""The gRPC server: all services on one port, messages bounded, nothing unexpected shown to clients."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from stepwell.serving.config import ServerConfig
from stepwell.serving.data_plane import DataPlane
from stepwell.serving.grpc import health, oip_service, stepwell_service
from stepwell.serving.grpc.guard import Guard
from stepwell.serving.pb import inference_pb2_grpc, stepwell_pb2_grpc

SERVICES = (oip_service.SERVICE_NAME, stepwell_service.SERVICE_NAME)


class GrpcServer:
    """Serves a data plane. Lives on one event loop."""

    def __init__(self, plane: DataPlane, config: ServerConfig) -> None:
        """Bind the port. Raises OSError if it cannot be had."""
        self._plane = plane
        self._server = grpc.aio.server(
            interceptors=[Guard(config.max_message_bytes, plane.arrivals)],
            options=[
                ("grpc.max_receive_message_length", config.receive_limit_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a helper
                # A client whose machine or network is gone sends nothing, not even an end: ask.
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
        )
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(oip_service.InferenceService(plane), self._server)
        stepwell_pb2_grpc.add_StepwellServicer_to_server(stepwell_service.StepwellService(plane), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthService(self._serving), self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        address = f"[{config.host}]" if ":" in config.host else config.host
        try:
            self.port = self._server.add_insecure_port(f"{address}:{config.grpc_port}")
        except RuntimeError as error:
            raise OSError(
                f"grpc_port: cannot listen on {address}:{config.grpc_port} ({error}); choose another"
            ) from error
        """The port it is bound to."""

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls; after ``grace_s`` seconds cancel those still open."""
        await self._server.stop(grace_s)

    def _serving(self) -> dict[str, bool]:
        ready = not self._plane.draining
        models = {name: self._plane.accepts(served) for name, served in self._plane.models.items()}
        return {**models, **dict.fromkeys(SERVICES, ready), "": not self._plane.not_ready_because()}
