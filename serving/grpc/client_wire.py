"""The client's side of the wire: typed values <-> messages of Stepwell's own service. No server code is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from stepwell.serving import client_types as api
from stepwell.serving.pb import stepwell_pb2 as pb
from stepwell.serving.pb import stepwell_pb2_grpc as pb_grpc

RETRY_AFTER_KEY = "retry-after-ms"


class Wire:
    """One channel and its stub."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self._stub = pb_grpc.StepwellStub(self._channel)

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int],
        sampling: Mapping[str, Any],
        slo: Mapping[str, Any],
        pins: Mapping[str, Any],
        timeout_s: float | None,
    ) -> Iterator[api.Chunk]:
        """Send a request when first iterated; None values are left unset. The last chunk has the report and no text."""
        try:
            request = pb.GenerateRequest(model=model, sampling=_set(pb.Sampling, sampling), slo=_set(pb.Slo, slo))
            for key, value in pins.items():
                if value is not None:
                    setattr(request, key, value)
            if isinstance(prompt, str):
                request.text = prompt
            else:
                request.token_ids.ids.extend(prompt)
                request.token_ids.SetInParent()
        except (TypeError, ValueError) as error:
            raise api.RequestFailedError("INVALID_ARGUMENT", f"request: cannot be sent ({error})", None) from error
        call = self._stub.Generate(request, timeout=timeout_s)
        try:
            with _failures():
                for response in call:
                    yield _chunk(response)
        finally:
            call.cancel()

    def predict(
        self,
        model: str,
        given: Mapping[str, Any],
        beside: Mapping[str, Any],
        outputs: Sequence[str],
        slo: Mapping[str, Any],
        pins: Mapping[str, Any],
        timeout_s: float | None,
    ) -> api.Prediction:
        """Send a request and wait; ``given`` is exactly one form of input, ``beside`` its second segments and token
        types. None values are left unset."""
        try:
            request = pb.PredictRequest(model=model, outputs=outputs, slo=_set(pb.Slo, slo))
            for key, value in pins.items():
                if value is not None:
                    setattr(request, key, value)
            stated = {key: value for key, value in given.items() if value is not None}
            if len(stated) != 1:
                raise ValueError(f"inputs: exactly one of {', '.join(given)} is needed, got {sorted(stated)}")
            _put_input(request, **stated)
            _put_segments(request, **beside)
        except (TypeError, ValueError) as error:
            raise api.RequestFailedError("INVALID_ARGUMENT", f"request: cannot be sent ({error})", None) from error
        with _failures():
            response = self._stub.Predict(request, timeout=timeout_s)
        import numpy as np  # with the first prediction: generations need none

        answered = {name: np.frombuffer(t.data, "<f4").reshape(list(t.shape)) for name, t in response.outputs.items()}
        return api.Prediction(answered, _report(response.report))

    def models(self) -> list[api.ModelSummary]:
        """ListModels."""
        with _failures():
            response = self._stub.ListModels(pb.ListModelsRequest())
        return [api.ModelSummary(m.name, m.platform, m.ready, m.context_length) for m in response.models]

    def describe(self, model: str) -> api.ModelDescription:
        """DescribeModel."""
        with _failures():
            found = self._stub.DescribeModel(pb.DescribeModelRequest(model=model)).model
        metric = found.quality_metric
        return api.ModelDescription(
            found.name,
            found.platform,
            found.ready,
            found.context_length,
            found.vocab_size,
            found.default_ladder,
            {"name": metric.name, "better": metric.better, "data": metric.data},
            tuple(_ladder(ladder) for ladder in found.ladders),
            found.task,
            tuple(found.labels),
            (found.image_height, found.image_width) if found.image_height else None,
        )

    def close(self) -> None:
        self._channel.close()


def _set(message: Any, values: Mapping[str, Any]) -> Any:
    return message(**{key: value for key, value in values.items() if value is not None})


def _put_input(
    request: pb.PredictRequest,
    pixel_values: Any = None,
    images: Sequence[bytes] | None = None,
    texts: Sequence[str] | None = None,
    token_ids: Sequence[Sequence[int]] | None = None,
) -> None:
    if pixel_values is not None:
        import numpy as np

        values = np.ascontiguousarray(pixel_values, "<f4")
        request.pixel_values.shape.extend(values.shape)
        request.pixel_values.data = values.tobytes()
    if images is not None:
        request.images.files.extend(images)
        request.images.SetInParent()
    if texts is not None:
        request.texts.texts.extend(texts)
        request.texts.SetInParent()
    if token_ids is not None:
        request.token_ids.sequences.extend(pb.TokenIds(ids=ids) for ids in token_ids)
        request.token_ids.SetInParent()


def _put_segments(
    request: pb.PredictRequest, text_pairs: Sequence[str] | None, token_type_ids: Sequence[Sequence[int]] | None
) -> None:
    if text_pairs is not None:
        _check_segments(request, "text_pairs", text_pairs, "texts", len(request.texts.texts))
        request.texts.text_pairs.extend(text_pairs)
    if token_type_ids is not None:
        _check_segments(request, "token_type_ids", token_type_ids, "token_ids", len(request.token_ids.sequences))
        request.token_ids.token_type_ids.extend(pb.TokenTypeIds(ids=types) for types in token_type_ids)


def _check_segments(request: pb.PredictRequest, name: str, values: Sequence[Any], of: str, count: int) -> None:
    """None at all cannot be told from none sent."""
    if request.WhichOneof("input") != of:
        raise ValueError(f"{name}: belongs to {of}, which is not given; send both")
    if len(values) != count:
        raise ValueError(f"{name}: must be one for each of the {count} {of}, got {len(values)}; send all of them")


def _chunk(response: pb.GenerateResponse) -> api.Chunk:
    report = _report(response.report) if response.HasField("report") else None
    chunk = response.chunk
    return api.Chunk(chunk.text, tuple(chunk.token_ids), tuple(chunk.logprobs), report)


def _report(message: pb.Report) -> api.Report:
    def if_set(key: str) -> float | None:
        return getattr(message, key) if message.HasField(key) else None

    return api.Report(
        operating_point=message.operating_point,
        quality=message.quality,
        outcome=pb.Outcome.Name(message.outcome).removeprefix("OUTCOME_").lower(),
        finish_reason=message.finish_reason,
        slo_ms=if_set("slo_ms"),
        predicted_ms=if_set("predicted_ms"),
        queue_ms=message.queue_ms,
        compute_ms=message.compute_ms,
        total_ms=message.total_ms,
        slo_met=message.slo_met,
        degraded=message.degraded,
        ttft_ms=if_set("ttft_ms"),
        tpot_ms=if_set("tpot_ms"),
        prompt_tokens=message.prompt_tokens,
        generated_tokens=message.generated_tokens,
        cached_tokens=message.cached_tokens,
        tokens_per_level=dict(message.tokens_per_level),
        tokens_kept=message.tokens_kept if message.HasField("tokens_kept") else None,
    )


def _ladder(message: pb.Ladder) -> api.Ladder:
    points = tuple(
        api.OperatingPoint(
            p.name, p.quality, p.metric if p.HasField("metric") else None, p.cost, p.parameters, p.token_budget
        )
        for p in message.points
    )
    return api.Ladder(message.name, pb.KvMode.Name(message.kv).removeprefix("KV_MODE_").lower(), points)


@contextmanager
def _failures() -> Iterator[None]:
    """gRPC errors -> RequestFailedError."""
    try:
        yield
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        hint = trailers.get(RETRY_AFTER_KEY)
        raise api.RequestFailedError(
            error.code().name,
            _message(error),
            int(hint) if hint is not None else None,
        ) from error


def _message(error: grpc.RpcError) -> str:
    """What the server said. An exposed server lets gRPC refuse a message above its bound, which does not say what to
    do."""
    details: str = error.details() or ""
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return f"message: {details}; shorten it or raise max_message_bytes in the server's configuration"
    return details
