"""The typed client of Stepwell's own service. Imports neither torch nor the server.

with Client("localhost:8001") as client:
    for chunk in client.generate("nested-lm", "def main(", slo_ms=200):
        print(chunk.text, end="")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from stepwell.serving.client_types import (
    Chunk,
    Completion,
    Ladder,
    ModelDescription,
    ModelSummary,
    OperatingPoint,
    Prediction,
    Report,
    RequestFailedError,
)
from stepwell.serving.grpc.client_wire import Wire

__all__ = [
    "Chunk",
    "Client",
    "Completion",
    "Ladder",
    "ModelDescription",
    "ModelSummary",
    "OperatingPoint",
    "Prediction",
    "Report",
    "RequestFailedError",
]


class Client:
    """A connection to one server. Safe to use from several threads."""

    def __init__(self, address: str = "localhost:8001") -> None:
        """``address`` is ``host:port``. Connects on first use."""
        self._wire = Wire(address)

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: bool = False,
        slo_ms: float | None = None,
        ttft_ms: float | None = None,
        tpot_ms: float | None = None,
        slo_class: str | None = None,
        priority: int | None = None,
        min_quality: float | None = None,
        operating_point: str | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Chunk]:
        """Generate and yield output as it comes; the last chunk carries the report.

        Args:
            model: name of a model of the server.
            prompt: text, or token ids.
            max_tokens: tokens to generate at most; None = the server's default.
            temperature, top_k, top_p, seed: sampling; temperature 0 is greedy.
            stop: texts that end the answer, not part of it.
            ignore_eos: go on after the end-of-sequence token.
            logprobs: also return each token's log-probability.
            slo_ms, ttft_ms, tpot_ms: latency asked for in milliseconds: whole answer, first token, each token after.
            slo_class, priority: a class of the server's configuration; 1 = most urgent.
            min_quality: floor relative to the full model, in (0, 1].
            operating_point: serve exactly there: ``LADDER:LEVEL``, ``max`` or ``min``.
            timeout_s: give up after this time (the call's deadline, which the server keeps as well).

        Closing the iterator cancels the request. Raises RequestFailedError.
        """
        sampling = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "max_tokens": max_tokens,
            "stop": list(stop),
            "ignore_eos": ignore_eos,
            "logprobs": logprobs,
        }
        slo = {"slo_ms": slo_ms, "ttft_ms": ttft_ms, "tpot_ms": tpot_ms, "slo_class": slo_class, "priority": priority}
        pins = {"min_quality": min_quality, "operating_point": operating_point}
        return self._wire.generate(model, prompt, sampling, slo, pins, timeout_s)

    def complete(self, model: str, prompt: str | Sequence[int], **options: object) -> Completion:
        """The whole answer at once; ``options`` as in :meth:`generate`. Raises RequestFailedError."""
        return Completion.of(self.generate(model, prompt, **options))  # type: ignore[arg-type]

    def predict(
        self,
        model: str,
        *,
        pixel_values: Any = None,
        images: Sequence[bytes] | None = None,
        texts: Sequence[str] | None = None,
        text_pairs: Sequence[str] | None = None,
        token_ids: Sequence[Sequence[int]] | None = None,
        token_type_ids: Sequence[Sequence[int]] | None = None,
        outputs: Sequence[str] = (),
        slo_ms: float | None = None,
        slo_class: str | None = None,
        priority: int | None = None,
        min_quality: float | None = None,
        operating_point: str | None = None,
        token_budget: float | None = None,
        timeout_s: float | None = None,
    ) -> Prediction:
        """Classify or segment images, or encode texts; exactly one form of input.

        Args:
            model: name of a model of the server.
            pixel_values: numbers [3, H, W] or [N, 3, H, W], normalised as the model wants them.
            images: PNG or JPEG files.
            texts: what the model's tokenizer reads.
            text_pairs: the second segment of each text: what a cross-encoder compares it with, an NLI hypothesis.
            token_ids: a sequence a text, never padded.
            token_type_ids: beside them which segment each token is of.
            outputs: names of those wanted; none = all that the model has.
            slo_ms, slo_class, priority, min_quality, operating_point, timeout_s: as in :meth:`generate`.
            token_budget: share of tokens to keep, in (0, 1].

        Raises RequestFailedError.
        """
        given = {"pixel_values": pixel_values, "images": images, "texts": texts, "token_ids": token_ids}
        slo = {"slo_ms": slo_ms, "slo_class": slo_class, "priority": priority}
        pins = {"min_quality": min_quality, "operating_point": operating_point, "token_budget": token_budget}
        beside = {"text_pairs": text_pairs, "token_type_ids": token_type_ids}
        return self._wire.predict(model, given, beside, outputs, slo, pins, timeout_s)

    def models(self) -> list[ModelSummary]:
        """The models of the server. Raises RequestFailedError."""
        return self._wire.models()

    def describe(self, model: str) -> ModelDescription:
        """A model with its ladders, qualities and costs. Raises RequestFailedError."""
        return self._wire.describe(model)

    def close(self) -> None:
        """Close the connection; requests in progress are cancelled."""
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
