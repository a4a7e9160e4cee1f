"""A model in this process: the same data plane and engine as the server's, without a network.

with Engine.open("nested-lm") as engine:
    print(engine.generate("def main(", max_tokens=20, slo_ms=300).text)
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from stepwell.serving.call import GenerateCall, generation_options
from stepwell.serving.client_types import Chunk, Completion, Prediction, Report
from stepwell.serving.config import ServerConfig, load_config
from stepwell.serving.data_plane import DataPlane
from stepwell.serving.engine.events import FinishEvent
from stepwell.serving.handoff import Chunk as Output
from stepwell.serving.metrics import Metrics
from stepwell.serving.predict_call import PredictCall, ragged
from stepwell.serving.predict_job import joined
from stepwell.serving.served_model import ServedModel

T = TypeVar("T")


class Engine:
    """One open model. Generations of several threads share its batches. Use it as a context, or ``close`` it."""

    def __init__(self, config: ServerConfig) -> None:
        """``config`` has exactly one model; see :meth:`open`."""
        metrics = Metrics(slo_classes=config.slo_classes)
        self._served = ServedModel(config.models[0], metrics)
        self._plane = DataPlane([self._served], config, metrics)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stepwell-offline", daemon=True)
        self._thread.start()
        try:
            self._wait(self._plane.start())
        except BaseException:
            self._end()
            raise

    @classmethod
    def open(cls, model: str, **options: Any) -> Engine:
        """Open a model by directory, shipped name or hub id.

        ``options`` are the fields of :class:`~stepwell.serving.config.ModelConfig`, such as ``dtype`` and
        ``kv_cache_mib``. Raises ValueError naming the field or file, the value and the remedy.
        """
        return cls(load_config(None, {"models": [{"source": model, **options}]}))

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Completion:
        """The whole answer; ``options`` as in :meth:`stream`. Raises RequestError."""
        return Completion.of(self.stream(prompt, **options))

    def stream(self, prompt: str | Sequence[int], *, logprobs: bool = False, **options: Any) -> Iterator[Chunk]:
        """Generate and yield output as it comes; the last chunk carries the report.

        Args:
            prompt: text, or token ids.
            logprobs: also return each token's log-probability.
            options: request parameters as the protocol names them: ``max_tokens``, ``temperature`` (0 = greedy),
                ``top_k``, ``top_p``, ``seed``, ``stop`` (text or several), ``ignore_eos``; ``slo_ms``, ``ttft_ms``,
                ``tpot_ms``, ``slo_class``, ``priority``, ``min_quality``, ``operating_point``. None = left out.

        Closing the iterator cancels the request. Raises RequestError.
        """
        parameters = {key: value for key, value in options.items() if value is not None}
        if isinstance(stop := parameters.get("stop"), (list, tuple)):
            parameters["stop"] = json.dumps(stop)
        read = generation_options(parameters, logprobs=logprobs)
        text, input_ids = (prompt, None) if isinstance(prompt, str) else (None, prompt)
        call = GenerateCall(self._served.name, text, input_ids, **vars(read), parameters=parameters)
        return self._stream(call)

    def predict(
        self,
        *,
        pixel_values: Any = None,
        images: Sequence[bytes] | None = None,
        texts: Sequence[str] | None = None,
        text_pairs: Sequence[str] | None = None,
        token_ids: Sequence[Sequence[int]] | None = None,
        token_type_ids: Sequence[Sequence[int]] | None = None,
        outputs: Sequence[str] = (),
        **options: Any,
    ) -> Prediction:
        """Classify or segment images, or encode texts; exactly one form of input.

        Args:
            pixel_values: numbers [3, H, W] or [N, 3, H, W], normalised as the model wants them.
            images: PNG or JPEG files.
            texts: what the model's tokenizer reads.
            text_pairs: the second segment of each text: what a cross-encoder compares it with, an NLI hypothesis.
            token_ids: a sequence a text, never padded.
            token_type_ids: beside them which segment each token is of.
            outputs: names of those wanted; none = all that the model has.
            options: request parameters as the protocol names them: ``slo_ms``, ``slo_class``, ``priority``,
                ``min_quality``, ``operating_point``, ``token_budget``. None = left out.

        Raises RequestError.
        """
        call = PredictCall(
            self._served.name,
            pixel_values=None if pixel_values is None else np.asarray(pixel_values, np.float32),
            images=images,
            texts=texts,
            text_pairs=text_pairs,
            **ragged(token_ids, token_type_ids)._asdict(),
            outputs=tuple(outputs),
            parameters={key: value for key, value in options.items() if value is not None},
        )
        answer = self._wait(self._plane.complete(call))
        assert answer.result is not None
        assert answer.finish is not None
        return Prediction(joined(self._served.hosted, answer.result), _report(answer.finish))

    def close(self) -> None:
        """End what is in progress and free the model."""
        if self._thread.is_alive():
            self._wait(self._plane.stop(0.0))
            self._end()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, call: GenerateCall) -> Iterator[Chunk]:
        arrived: queue.SimpleQueue[Chunk | Exception] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for output in self._plane.generate(call):
                    arrived.put(_chunk(output))
            except Exception as error:
                arrived.put(error)

        pumping = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            finished = False
            while not finished:
                chunk = arrived.get()
                if isinstance(chunk, Exception):
                    raise chunk
                finished = chunk.report is not None
                yield chunk
        finally:
            pumping.cancel()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _chunk(output: Output) -> Chunk:
    report = None if output.finish is None else _report(output.finish)
    return Chunk(output.text, output.token_ids, output.logprobs or (), report)


def _report(finish: FinishEvent) -> Report:
    """The fields that the client's report has, under the same names."""
    served: dict[str, Any] = {field.name: getattr(finish.report, field.name, None) for field in fields(Report)}
    return Report(**{**served, "outcome": finish.outcome.value, "finish_reason": finish.finish_reason})
