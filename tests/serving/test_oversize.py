"""A message above the bound is refused precisely; where strangers could send it, without reading it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from stepwell.serving.client import Client, RequestFailedError
from stepwell.serving.pb import inference_pb2 as pb

BOUND = 1 << 20
REMEDY = "shorten it or raise max_message_bytes in the server's configuration"
BAD_MESSAGES = [
    pytest.param(4 << 20, grpc.StatusCode.RESOURCE_EXHAUSTED, REMEDY, id="oversize"),
    pytest.param(9, grpc.StatusCode.INVALID_ARGUMENT, "not valid protobuf", id="malformed"),
]
"""Number of zero bytes, which are no message of any type; status; part of the answer."""


@pytest.fixture
def bounded(make_server: Any) -> Any:
    """A server whose messages have at most BOUND bytes."""
    return make_server(max_message_bytes=BOUND)


def oversize(num_bytes: int) -> str:
    """The whole error for a message of ``num_bytes``."""
    return f"message: must be at most {BOUND} bytes, got {num_bytes}; {REMEDY}"


def is_final(response: pb.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


def test_message_above_the_bound_is_refused_and_the_others_are_served(bounded: Any, wire: Any) -> None:
    request = wire.infer("x" * (4 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        bounded.oip.ModelInfer(request, timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == oversize(request.ByteSize())
    assert dict(caught.value.trailing_metadata())["x-stepwell-reason"] == oversize(request.ByteSize())
    bounded.check_serves()


def test_message_above_the_bound_is_answered_in_band_and_the_stream_goes_on(make_server: Any, wire: Any) -> None:
    running = make_server(max_message_bytes=BOUND)
    running.gate.close()
    good, large = wire.infer("hello", max_tokens=2, ignore_eos=True), wire.infer("x" * (4 << 20))
    responses = running.oip.ModelStreamInfer(iter([good, large, good]), timeout=20)
    refusal = next(responses)
    assert refusal.error_message == oversize(large.ByteSize()), "while the others wait for a step"
    assert is_final(refusal)
    running.gate.open()
    answers = list(responses)
    assert [answer.error_message for answer in answers] == [""] * len(answers)
    assert sum(map(is_final, answers)) == 2


@pytest.mark.parametrize("excess", [0, 1])
def test_the_bound_is_exact(bounded: Any, excess: int) -> None:
    live = bounded.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    message = b"\x7a" + varint(BOUND + excess - 4) + bytes(BOUND + excess - 4)  # a field the type does not have
    assert len(message) == BOUND + excess
    if not excess:
        assert pb.ServerLiveResponse.FromString(live(message, timeout=20)).live
        return
    with pytest.raises(grpc.RpcError) as caught:
        live(message, timeout=20)
    assert caught.value.details() == oversize(BOUND + 1)


def varint(value: int) -> bytes:
    """Three bytes of a protobuf varint."""
    return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14))


@pytest.mark.parametrize("method", ["Check", "Watch"])
@pytest.mark.parametrize(("size", "code", "part"), BAD_MESSAGES)
def test_health_refuses_bad_messages_too(
    bounded: Any, method: str, size: int, code: grpc.StatusCode, part: str
) -> None:
    call = bounded.channel.unary_stream(f"/grpc.health.v1.Health/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(bytes(size), timeout=20))
    assert caught.value.code() is code
    assert part in caught.value.details()
    bounded.check_serves()


@pytest.mark.parametrize(("size", "code", "part"), BAD_MESSAGES)
def test_reflection_answers_until_the_first_bad_message(
    bounded: Any, size: int, code: grpc.StatusCode, part: str
) -> None:
    call = bounded.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    good = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    responses = call(iter([good, bytes(size), good]), timeout=20)
    assert b"inference.GRPCInferenceService" in next(responses)
    with pytest.raises(grpc.RpcError) as caught:
        next(responses)
    assert caught.value.code() is code
    assert part in caught.value.details()
    bounded.check_serves()


def test_our_client_passes_on_what_to_do_about_a_message_above_the_bound(bounded: Any) -> None:
    with Client(bounded.address) as client, pytest.raises(RequestFailedError) as caught:
        client.complete("tiny", "x" * (4 << 20))
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    for part in (f"message: must be at most {BOUND} bytes, got 4194", REMEDY):
        assert part in str(caught.value)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_message_counts_by_what_it_unpacks_to(
    bounded: Any, wire: Any, compression: grpc.Compression
) -> None:
    request = wire.infer("x" * (16 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        bounded.oip.ModelInfer(request, compression=compression, timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == oversize(request.ByteSize())
    response = bounded.oip.ModelInfer(wire.infer("hello", max_tokens=1), compression=compression)
    assert response.parameters["generated_tokens"].int64_param == 1


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_where_strangers_reach_the_server_grpc_refuses_unread(
    make_server: Any, wire: Any, compression: grpc.Compression
) -> None:
    """As on an exposed host: of the size only what gRPC says, streams end, and only our client adds the remedy."""
    running = make_server(max_message_bytes=BOUND, max_buffered_bytes=BOUND)
    request = wire.infer("x" * (4 << 20))
    for call in (
        lambda: running.oip.ModelInfer(request, compression=compression, timeout=20),
        lambda: list(running.oip.ModelStreamInfer(iter([request]), compression=compression, timeout=20)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in caught.value.details()
        running.check_serves()
    with Client(running.address) as client, pytest.raises(RequestFailedError) as refused:
        client.complete("tiny", "x" * (4 << 20))
    assert refused.value.status == "RESOURCE_EXHAUSTED"
    for part in ("message: ", f"vs. {BOUND})", REMEDY):
        assert part in str(refused.value)
