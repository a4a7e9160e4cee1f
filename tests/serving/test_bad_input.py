"""Every bad request gets a precise error (status, field, value, remedy), and the server serves on."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from stepwell.serving.pb import inference_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
Make = Callable[[Any], pb.ModelInferRequest]


def edited(edit: Callable[[pb.ModelInferRequest], None], prompt: Any = "hello") -> Make:
    def make(wire: Any) -> pb.ModelInferRequest:
        request = wire.infer(prompt)
        edit(request)
        return request

    return make


def with_parameters(**parameters: Any) -> Make:
    return lambda wire: wire.infer("hello", **parameters)


def in_unset_form(request: pb.ModelInferRequest) -> None:
    request.parameters["slo_ms"].SetInParent()


# name, how to make it, status, parts of the message: field, value, remedy.
CASES: list[tuple[str, Make, grpc.StatusCode, list[str]]] = [
    ("unknown model", lambda w: w.infer("hello", model="gpt"), NOT_FOUND, ["model", "'gpt'", "['tiny', 'token-only']"]),
    (
        "unknown version",
        edited(lambda r: setattr(r, "model_version", "7")),
        NOT_FOUND,
        ["model_version", "'7'", "use '1'"],
    ),
    ("no input", edited(lambda r: r.Clear() or setattr(r, "model_name", "tiny")), INVALID, ["inputs", "[]", "send"]),
    (
        "both inputs",
        edited(
            lambda r: (
                r.inputs.add(name="input_ids", datatype="INT64", shape=[1]) and r.raw_input_contents.append(bytes(8))
            )
        ),
        INVALID,
        ["inputs", "['input_ids', 'text']", "send one"],
    ),
    ("unknown input", edited(lambda r: setattr(r.inputs[0], "name", "prompt")), INVALID, ["'prompt'", "input_ids"]),
    ("wrong type", edited(lambda r: setattr(r.inputs[0], "datatype", "FP32")), INVALID, ["'text'", "'FP32'", "BYTES"]),
    ("wrong shape", edited(lambda r: r.inputs[0].shape.append(1)), INVALID, ["'text' shape", "[1, 1]", "[1]"]),
    (
        "two texts",
        edited(lambda r: r.inputs[0].shape.__setitem__(0, 2)),
        INVALID,
        ["'text' shape", "[2]", "send that shape"],
    ),
    (
        "too few bytes",
        edited(lambda r: r.raw_input_contents.__setitem__(0, bytes(7)), [1]),
        INVALID,
        ["'input_ids' raw bytes", "8 bytes", "got 7", "make shape and data agree"],
    ),
    (
        "text cut short",
        edited(lambda r: r.raw_input_contents.__setitem__(0, struct.pack("<I", 9) + b"abc")),
        INVALID,
        ["'text' raw bytes", "9 bytes", "3 are left", "4-byte"],
    ),
    (
        "invalid UTF-8",
        lambda w: w.infer(b"ab\xff\xfe"),
        INVALID,
        ["'text'", "UTF-8 at byte 2", "b'\\xff\\xfe'", "send UTF-8"],
    ),
    ("empty prompt", lambda w: w.infer(""), INVALID, ["text", "empty", "''", "at least one"]),
    ("no tokens", lambda w: w.infer([]), INVALID, ["input_ids", "empty", "[]", "at least one"]),
    (
        "prompt longer than the context",
        lambda w: w.infer([1] * w.context),
        INVALID,
        ["prompt", "256 tokens", "shorten"],
    ),
    (
        "text longer than the context",
        lambda w: w.infer("x" * 3000),
        INVALID,
        ["prompt", "context of 256", "3000 tokens", "shorten"],
    ),
    (
        "prompt and output longer than the context",
        lambda w: w.infer([1] * 200, max_tokens=57),
        INVALID,
        ["max_tokens", "57", "at most 56"],
    ),
    ("token id too large", lambda w: w.infer([1, 257]), INVALID, ["input_ids[1]", "257", "0..256"]),
    ("token id negative", lambda w: w.infer([-1]), INVALID, ["input_ids[0]", "-1", "0..256"]),
    ("no text model", lambda w: w.infer("hi", model="token-only"), INVALID, ["text", "'hi'", "token ids"]),
    (
        "unknown output",
        edited(lambda r: r.outputs.add(name="logits") and None),
        INVALID,
        ["outputs[0].name", "'logits'", "logprobs"],
    ),
    (
        "output twice",
        edited(lambda r: r.outputs.extend([pb.ModelInferRequest.InferRequestedOutputTensor(name="text")] * 2)),
        INVALID,
        ["outputs[1].name", "'text'", "once"],
    ),
    (
        "unknown operating point",
        with_parameters(operating_point="depth:9"),
        INVALID,
        ["operating_point", "'depth:9'", "0..2"],
    ),
    (
        "unknown ladder",
        with_parameters(operating_point="height:1"),
        INVALID,
        ["operating_point", "'height:1'", "['depth', 'width']", "'max'"],
    ),
    ("token budget", with_parameters(token_budget=0.5), INVALID, ["token_budget", "0.5", "leave it out"]),
    ("lossless below full", with_parameters(lossless=True, operating_point="min"), INVALID, ["lossless", "'min'"]),
    (
        "negative SLO",
        with_parameters(slo_ms=-3),
        INVALID,
        ["slo_ms", "must be > 0", "-3", "or leave it out"],
    ),
    ("zero SLO", with_parameters(ttft_ms=0.0), INVALID, ["ttft_ms", "must be > 0", "0.0", "leave it out"]),
    ("NaN SLO", with_parameters(slo_ms=math.nan), INVALID, ["slo_ms", "finite", "nan", "milliseconds"]),
    ("infinite SLO", with_parameters(tpot_ms=math.inf), INVALID, ["tpot_ms", "finite", "inf", "milliseconds"]),
    ("SLO of the wrong type", with_parameters(slo_ms=True), INVALID, ["slo_ms", "number", "True"]),
    ("SLO without value", edited(in_unset_form), INVALID, ["slo_ms", "has no value", "set one"]),
    ("unknown SLO key", with_parameters(slo_mss=5), INVALID, ["slo_mss", "unknown", "5", "'slo_ms'"]),
    ("reserved key", with_parameters(triton_secret=1), INVALID, ["triton_secret", "reserved", "triton_final_response"]),
    ("unknown class", with_parameters(slo_class="gold"), INVALID, ["slo_class", "'gold'", "relaxed"]),
    ("min_quality", with_parameters(min_quality=1.5), INVALID, ["min_quality", "(0, 1]", "1.5"]),
    (
        "min_quality above the pinned point",
        with_parameters(min_quality=0.9, operating_point="depth:0"),
        INVALID,
        ["min_quality", "depth:0", "0.9", "at most 0.5"],
    ),
    ("timeout", with_parameters(timeout=-1), INVALID, ["timeout", "-1", "microseconds"]),
    ("priority", with_parameters(priority=-1), INVALID, ["priority", "-1", "most urgent"]),
    ("max_tokens", with_parameters(max_tokens=0), INVALID, ["max_tokens", "0", ">= 1"]),
    ("max_tokens as a fraction", with_parameters(max_tokens=1.5), INVALID, ["max_tokens", "whole", "1.5"]),
    ("temperature", with_parameters(temperature=-1.0), INVALID, ["temperature", "-1.0"]),
    ("temperature NaN", with_parameters(temperature=math.nan), INVALID, ["temperature", "nan"]),
    ("top_p", with_parameters(top_p=0.0), INVALID, ["top_p", "0.0"]),
    ("top_k", with_parameters(top_k=-1), INVALID, ["top_k", "-1"]),
    ("seed", with_parameters(seed="lucky"), INVALID, ["seed", "'lucky'"]),
    ("ignore_eos", with_parameters(ignore_eos="maybe"), INVALID, ["ignore_eos", "'maybe'", "boolean"]),
    ("stop of the wrong type", with_parameters(stop=5), INVALID, ["stop", "5", "JSON array"]),
    ("stop of mixed types", with_parameters(stop='["a", 3]'), INVALID, ["stop", "array of texts", "JSON array"]),
    ("empty stop text", with_parameters(stop=""), INVALID, ["stop", "''", "1 to 256"]),
    ("too many stop texts", with_parameters(stop=str(["x"] * 17).replace("'", '"')), INVALID, ["stop", "17", "16"]),
    ("empty final response", with_parameters(triton_enable_empty_final_response="x"), INVALID, ["triton_", "'x'"]),
]


@pytest.mark.parametrize(("make", "status", "parts"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_precise_error(shared: Any, wire: Any, make: Make, status: grpc.StatusCode, parts: list[str]) -> None:
    request = make(wire)
    if "triton_enable_empty_final_response" in request.parameters:
        (response,) = shared.oip.ModelStreamInfer(iter([request]), timeout=20)
        message = response.error_message
    else:
        with pytest.raises(grpc.RpcError) as caught:
            shared.oip.ModelInfer(request, timeout=20)
        assert caught.value.code() is status
        message = caught.value.details()
        reason = dict(caught.value.trailing_metadata())["x-stepwell-reason"]
        assert message.startswith(reason[:60])
    for part in parts:
        assert part in message
    shared.check_serves()


@pytest.mark.parametrize(
    ("key", "value"),
    [("x-stepwell-slo-ms", "soon"), ("x-slo-tpot-ms", "-1"), ("x-stepwell-slo-class", "gold"), ("x-stepwell-x", "1")],
)
def test_bad_metadata(shared: Any, wire: Any, key: str, value: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shared.oip.ModelInfer(wire.infer("hello"), metadata=((key, value),))
    assert caught.value.code() is INVALID
    assert caught.value.details().startswith(f"{key}: ")
    assert repr(value) in caught.value.details()


@pytest.mark.parametrize("name", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_unknown_model_elsewhere(shared: Any, name: str) -> None:
    request = getattr(pb, f"{name}Request")
    for fields in ({"name": "gpt"}, {"name": "tiny", "version": "9"}):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(shared.oip, name)(request(**fields))
        assert caught.value.code() is NOT_FOUND
        assert repr(fields.get("version", "gpt")) in caught.value.details()


def test_repository_requests_that_make_no_sense(shared: Any) -> None:
    calls = [
        (shared.oip.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="gpt"), NOT_FOUND, "'gpt'"),
        (shared.oip.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="gpt"), NOT_FOUND, "'gpt'"),
        (shared.oip.RepositoryIndex, pb.RepositoryIndexRequest(repository_name="r"), INVALID, "'r'"),
    ]
    configured = pb.RepositoryModelLoadRequest(model_name="tiny")
    configured.parameters["config"].string_param = "{}"
    calls.append((shared.oip.RepositoryModelLoad, configured, INVALID, "'config'"))
    for method, request, status, part in calls:
        with pytest.raises(grpc.RpcError) as caught:
            method(request)
        assert caught.value.code() is status
        assert part in caught.value.details()
    shared.check_serves()


def test_long_values_are_cut_in_messages(shared: Any, wire: Any) -> None:
    """A message travels in a header: at full length the client would only see that its headers overflowed."""
    for request in (
        wire.infer("hello", slo_class="x" * 100_000),
        wire.infer("hello", **{"k" * 100_000: 1}),
        wire.infer("hello", model="m" * 100_000),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            shared.oip.ModelInfer(request)
        assert caught.value.code() in (INVALID, NOT_FOUND)
        assert len(caught.value.details()) < 1100


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
def test_bytes_that_are_no_message(shared: Any, method: str) -> None:
    call = shared.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a\xff\xff\xff")
    assert caught.value.code() is INVALID
    assert "protobuf" in caught.value.details()
    shared.check_serves()


def test_prompt_text_above_its_own_bound(make_server: Any, wire: Any) -> None:
    running = make_server(max_prompt_bytes=100)
    for text, size in (("x" * 101, 101), ("é" * 51, 102)):
        with pytest.raises(grpc.RpcError) as caught:
            running.oip.ModelInfer(wire.infer(text))
        assert caught.value.code() is INVALID
        assert "100 bytes" in caught.value.details()
        assert str(size) in caught.value.details()
    running.oip.ModelInfer(wire.infer("x" * 100, max_tokens=1))


def test_a_step_that_fails_shows_the_client_no_inside(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.fail = True
    with pytest.raises(grpc.RpcError) as caught:
        running.oip.ModelInfer(wire.infer("hello"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.details()
    assert "Traceback" not in caught.value.details()
    assert running.sample("slo_requests_total", slo_class="default", outcome="failed") == 1
    running.check_serves()


def test_an_unexpected_error_of_ours_shows_the_client_no_inside(
    make_server: Any, wire: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = make_server()

    def broken(*args: object) -> None:
        raise KeyError("secret")

    with monkeypatch.context() as patch:
        patch.setattr("stepwell.serving.data_plane.choose_max_tokens", broken)
        with pytest.raises(grpc.RpcError) as caught:
            running.oip.ModelInfer(wire.infer("hello"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.details()
    assert "KeyError" in caplog.text, "but the log has it"
    running.check_serves()
