"""The checkpoint as a runtime of MLServer. ``start_mlserver.py`` configures it."""

from __future__ import annotations

import asyncio

import hf
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class NestedLM(MLModel):
    """Whole answers: MLServer's stream is not the protocol's (its messages lack the error), so nobody reads it."""

    async def load(self) -> bool:
        """Load the model."""
        given = self.settings.parameters.extra
        kind = hf.Static if given["batching"] == "static" else hf.Continuous
        self._runs = kind(self.settings.parameters.uri, given["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """All tokens of one request; those of others share its batch."""
        loop, done, tokens = asyncio.get_running_loop(), asyncio.Event(), []

        def on_token(token: int, last: bool) -> None:
            tokens.append(token)
            if last:
                loop.call_soon_threadsafe(done.set)

        ids = list(payload.inputs[0].data)
        gone = False
        self._runs.submit(hf.Job(ids, int(payload.parameters.max_tokens), on_token, lambda: gone))
        try:
            await done.wait()
        except asyncio.CancelledError:
            gone = True
            raise
        output = ResponseOutput(name="output_ids", shape=[len(tokens)], datatype="INT64", data=tokens)
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[output])
