"""One bidirectional ModelStreamInfer call: many concurrent requests in, their responses out as they come.

An error of one request is answered in-band and leaves the stream and the other requests alone; unless the client asked,
by Triton's metadata ``triton_grpc_error``, for a status, which ends the stream. When the client goes away the call's
task is cancelled, which cancels every request of the stream.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

from stepwell.serving.data_plane import DataPlane
from stepwell.serving.errors import RequestError
from stepwell.serving.grpc import oip_predict
from stepwell.serving.grpc.guard import Refused
from stepwell.serving.grpc.oip_asked import refuse_as_before
from stepwell.serving.grpc.oip_converters import mark_final, output_names, to_call, to_response, wants_empty_final
from stepwell.serving.grpc.status import Context, as_request_error, message_of, metadata_of
from stepwell.serving.handoff import Chunk
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.served_model import VERSION, ServedModel

STATUS_KEY = "triton_grpc_error"
MAX_CONCURRENT = 1024
"""Requests of one stream in progress at the same time; the stream is not read further until one ends."""


class InferStream:
    """State of one call."""

    def __init__(self, plane: DataPlane, context: Context) -> None:
        self._plane = plane
        self._context = context
        self._metadata = metadata_of(context)
        self._wants_status = self._metadata.get(STATUS_KEY) == "true"
        self._failure: RequestError | None = None
        self._writing = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_done: asyncio.Future[None] | None = None
        """Of the tasks, once no more will come."""

    async def serve(self, request_iterator: Any) -> None:
        """Run until the client has closed its side and every request is answered. Raises the first request's error if
        the client wants a status."""
        self._serving = asyncio.current_task()
        try:
            async for request in request_iterator:
                if self._wants_status and not self._tasks and not isinstance(request, Refused):
                    self._refuse_as_before(request)  # which ends the call: a task is not worth while
                await self._slots.acquire()
                task = asyncio.create_task(self._serve_one(request))
                self._tasks.add(task)
                task.add_done_callback(self._done)
            if self._tasks:
                self._all_done = asyncio.get_running_loop().create_future()
                await self._all_done
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            async with self._writing:  # a call cannot end in the middle of a message
                raise self._failure from None
        finally:
            for task in self._tasks:
                task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if not self._tasks and self._all_done is not None and not self._all_done.done():
            self._all_done.set_result(None)
        if not task.cancelled():
            task.exception()  # writing fails when the client is gone; the call itself is cancelled then

    async def _serve_one(self, request: pb.ModelInferRequest | Refused) -> None:
        came_s = time.monotonic()
        if isinstance(request, Refused):  # nothing of it is known, not even its id
            return await self._fail(pb.ModelInferResponse(), request.error, came_s)
        try:
            if self._plane.model(request.model_name, request.model_version).predicts:
                await self._predict(request)
            else:
                await self._generate(request)
        except Exception as error:
            failure = as_request_error(error, "ModelStreamInfer")
            await self._fail(pb.ModelInferResponse(model_name=request.model_name, id=request.id), failure, came_s)

    def _refuse_as_before(self, request: pb.ModelInferRequest) -> ServedModel:
        served = self._plane.model(request.model_name, request.model_version)
        refuse_as_before(self._plane, served, request, self._metadata, self._context)
        return served

    async def _generate(self, request: pb.ModelInferRequest) -> None:
        served = self._refuse_as_before(request)
        outputs = output_names(request, served.has_text)
        empty_final = wants_empty_final(request)
        call = to_call(request, outputs, self._metadata, self._context.time_remaining())
        async with aclosing(self._plane.generate(call)) as chunks:
            async for chunk in chunks:
                if chunk.finish is not None and empty_final:
                    if chunk.token_ids or chunk.text:
                        await self._respond(request, Chunk(chunk.token_ids, chunk.text, chunk.logprobs, None), outputs)
                    await self._respond(request, chunk, ())
                else:
                    await self._respond(request, chunk, outputs)

    async def _predict(self, request: pb.ModelInferRequest) -> None:
        hosted = self._plane.model(request.model_name).hosted
        call = oip_predict.to_call(request, hosted, self._metadata, self._context.time_remaining())
        response = oip_predict.to_response(request, VERSION, hosted, await self._plane.complete(call))
        mark_final(response, True)
        await self._write(response)

    async def _respond(self, request: pb.ModelInferRequest, chunk: Chunk, outputs: tuple[str, ...]) -> None:
        response = to_response(request, VERSION, chunk, outputs)
        mark_final(response, chunk.finish is not None)
        await self._write(response)

    async def _fail(self, response: pb.ModelInferResponse, error: RequestError, came_s: float) -> None:
        if self._wants_status:
            self._failure = self._failure or error
            assert self._serving is not None
            self._serving.cancel()
            return
        response.parameters["total_ms"].double_param = (time.monotonic() - came_s) * 1e3
        mark_final(response, True)
        await self._write(response, message_of(error))

    async def _write(self, response: pb.ModelInferResponse, error: str = "") -> None:
        async with self._writing:  # a stream takes one message at a time
            if self._failure is not None:
                return
            await self._context.write(pb.ModelStreamInferResponse(infer_response=response, error_message=error))
