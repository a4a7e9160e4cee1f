"""The Open Inference Protocol service: one request at a time, streams, health and metadata."""

from __future__ import annotations

from importlib import metadata as package_metadata
from typing import Any

from stepwell.serving.data_plane import DataPlane
from stepwell.serving.errors import invalid
from stepwell.serving.grpc import oip_describe as describe
from stepwell.serving.grpc import oip_predict
from stepwell.serving.grpc.oip_asked import refuse_as_before
from stepwell.serving.grpc.oip_converters import mark_final, output_names, to_call, to_response
from stepwell.serving.grpc.oip_stream import InferStream
from stepwell.serving.grpc.status import Context, metadata_of
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.pb import inference_pb2_grpc as pb_grpc
from stepwell.serving.served_model import VERSION

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SERVER_NAME = "stepwell"
EXTENSIONS = ("model_configuration", "model_repository", "statistics", "parameters", "sequence")


class InferenceService(pb_grpc.GRPCInferenceServiceServicer):
    """Every RPC: message -> data plane -> message. Errors are raised; :class:`Guard` makes them statuses."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=not self._plane.not_ready_because())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        served = self._plane.models.get(request.name)
        right_version = request.version in ("", VERSION)
        return pb.ModelReadyResponse(ready=served is not None and right_version and self._plane.accepts(served))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        version = package_metadata.version("stepwell")
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=version, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        return describe.model_metadata(self._plane.model(request.name, request.version))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        return describe.model_config(self._plane.model(request.name, request.version))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        models = self._plane.models.values()
        chosen = [self._plane.model(request.name, request.version)] if request.name else models
        return pb.ModelStatisticsResponse(model_stats=[describe.model_statistics(served) for served in chosen])

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        served = self._plane.model(request.model_name, request.model_version)
        metadata = metadata_of(context)
        refuse_as_before(self._plane, served, request, metadata, context)
        if served.predicts:
            hosted = served.hosted
            predict = oip_predict.to_call(request, hosted, metadata, context.time_remaining())
            response = oip_predict.to_response(request, VERSION, hosted, await self._plane.complete(predict))
        else:
            outputs = output_names(request, served.has_text)
            call = to_call(request, outputs, metadata, context.time_remaining())
            response = to_response(request, VERSION, await self._plane.complete(call), outputs)
        mark_final(response, True)
        return response

    async def ModelStreamInfer(self, request_iterator: Any, context: Context) -> None:
        await InferStream(self._plane, context).serve(request_iterator)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        models = [m for m in self._plane.models.values() if not request.ready or self._plane.accepts(m)]
        return pb.RepositoryIndexResponse(models=[describe.index_entry(served) for served in models])

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        if request.parameters:
            key = sorted(request.parameters)[0]
            raise invalid("parameters", "loading takes none", key, "change the server's configuration instead")
        await self._plane.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        await self._plane.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _check_repository(name: str) -> None:
    if name:
        raise invalid("repository_name", "there is one repository, without a name", name, "leave it empty")
