"""Stepwell's own service: typed generation and prediction, the models and their ladders."""

from __future__ import annotations

from contextlib import aclosing

from stepwell.serving.data_plane import DataPlane
from stepwell.serving.grpc.status import Context, metadata_of
from stepwell.serving.grpc.stepwell_converters import to_call, to_description, to_responses, to_summary
from stepwell.serving.grpc.stepwell_predict import to_predict_call, to_predict_response
from stepwell.serving.pb import stepwell_pb2 as pb
from stepwell.serving.pb import stepwell_pb2_grpc as pb_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Stepwell"].full_name


class StepwellService(pb_grpc.StepwellServicer):
    """Message -> data plane -> message. Errors are raised; :class:`Guard` makes them statuses."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        call = to_call(request, metadata_of(context), context.time_remaining())
        async with aclosing(self._plane.generate(call)) as chunks:
            async for chunk in chunks:
                for response in to_responses(chunk):
                    await context.write(response)

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        hosted = self._plane.model(request.model).hosted
        call = to_predict_call(request, metadata_of(context), context.time_remaining())
        return to_predict_response(hosted, await self._plane.complete(call))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        summaries = [
            to_summary(name, self._plane.accepts(served), served.hosted_or_none)
            for name, served in self._plane.models.items()
        ]
        return pb.ListModelsResponse(models=summaries)

    async def DescribeModel(self, request: pb.DescribeModelRequest, context: Context) -> pb.DescribeModelResponse:
        served = self._plane.model(request.model)
        model = to_description(served.name, self._plane.accepts(served), served.hosted)
        return pb.DescribeModelResponse(model=model)
