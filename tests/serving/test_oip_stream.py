"""ModelStreamInfer: many requests on one stream, each answered piece by piece."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from stepwell.serving.pb import inference_pb2 as pb

PROMPT = "for i in"


class Stream:
    """The client's side of one stream."""

    def __init__(self, running: Any, timeout: float | None = 30.0) -> None:
        self._requests: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()
        self.call = running.oip.ModelStreamInfer(iter(self._requests.get, None), timeout=timeout)

    def send(self, request: pb.ModelInferRequest, request_id: str = "") -> None:
        request.id = request_id
        self._requests.put(request)

    def receive(self) -> pb.ModelStreamInferResponse:
        return next(self.call)

    def until_final(self) -> list[pb.ModelStreamInferResponse]:
        """The responses up to the next final one."""
        received = [self.receive()]
        while not is_final(received[-1]):
            received.append(self.receive())
        return received

    def end(self) -> list[pb.ModelStreamInferResponse]:
        """Close our side; what still comes."""
        self._requests.put(None)
        return list(self.call)


def is_final(response: pb.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


@pytest.fixture
def stream(shared: Any) -> Iterator[Stream]:
    stream = Stream(shared)
    yield stream
    stream.call.cancel()


def test_pieces_make_up_the_answer_and_the_last_is_marked(shared: Any, wire: Any, stream: Stream) -> None:
    request = wire.infer(PROMPT, max_tokens=9, ignore_eos=True)
    whole = shared.oip.ModelInfer(request)
    stream.send(request, "a")
    pieces = stream.until_final()
    assert stream.end() == []
    assert [p.error_message for p in pieces] == [""] * len(pieces)
    assert {p.infer_response.id for p in pieces} == {"a"}
    assert [is_final(p) for p in pieces] == [False] * (len(pieces) - 1) + [True]
    ids = [i for p in pieces for i in wire.output(p.infer_response, "output_ids")]
    assert ids == wire.output(whole, "output_ids")
    text = "".join(wire.output(p.infer_response, "text") for p in pieces)
    assert text == wire.output(whole, "text")
    assert wire.output(pieces[-1].infer_response, "output_ids") != [], "no empty response unless it is asked for"
    last = pieces[-1].infer_response.parameters
    assert last["generated_tokens"].int64_param == 9
    assert "generated_tokens" not in pieces[0].infer_response.parameters


def test_one_response_a_token_for_a_reader_that_keeps_up(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    stream = Stream(running)
    stream.send(wire.infer(PROMPT, max_tokens=4, ignore_eos=True))
    for number in range(4):
        running.gate.allow(1)
        response = stream.receive()
        assert len(wire.output(response.infer_response, "output_ids")) == 1
        assert is_final(response) == (number == 3)
    assert stream.end() == []


def test_empty_final_response_if_asked_for(wire: Any, stream: Stream) -> None:
    stream.send(wire.infer(PROMPT, max_tokens=3, ignore_eos=True, triton_enable_empty_final_response=True))
    pieces = stream.until_final()
    last = pieces[-1].infer_response
    assert list(last.outputs) == list(last.raw_output_contents) == []
    assert last.parameters["generated_tokens"].int64_param == 3
    assert sum(len(wire.output(p.infer_response, "output_ids")) for p in pieces[:-1]) == 3


def test_requests_of_a_stream_run_at_the_same_time(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    stream = Stream(running)
    for name in "abc":
        stream.send(wire.infer(PROMPT, max_tokens=5, ignore_eos=True, operating_point="depth:1"), name)
    wire.eventually(lambda: wire.admitted(running) == 3)
    running.gate.open()
    pieces = stream.end()
    by_id = {name: [p.infer_response for p in pieces if p.infer_response.id == name] for name in "abc"}
    ids = {name: [i for p in found for i in wire.output(p, "output_ids")] for name, found in by_id.items()}
    assert ids["a"] == ids["b"] == ids["c"]
    assert len(ids["a"]) == 5
    assert running.gate.steps_run < 15, "batched, not one after the other"


def test_an_error_is_in_band_and_the_stream_stays_open(wire: Any, stream: Stream) -> None:
    for number, bad in enumerate(
        [wire.infer(PROMPT, model="absent"), wire.infer(PROMPT, slo_ms=-1), wire.infer([99999]), wire.infer("")]
    ):
        stream.send(bad, f"bad{number}")
        (response,) = stream.until_final()
        assert response.error_message
        assert response.infer_response.id == f"bad{number}"
    stream.send(wire.infer(PROMPT, max_tokens=1), "good")
    (response,) = stream.until_final()
    assert response.error_message == ""


def test_an_error_after_some_tokens_is_in_band_too(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    stream = Stream(running)
    stream.send(wire.infer(PROMPT, max_tokens=50, ignore_eos=True), "x")
    for _ in range(2):  # one by one: tokens that wait for the reader come as one response
        running.gate.allow(1)
        assert stream.receive().error_message == ""
    running.gate.fail = True
    running.gate.open()
    failure = stream.receive()
    assert failure.infer_response.id == "x"
    assert is_final(failure)
    assert "secret" not in failure.error_message
    stream.send(wire.infer(PROMPT, max_tokens=1), "y")
    assert stream.until_final()[-1].error_message == ""


def test_a_malformed_message_is_answered_in_band(shared: Any, wire: Any) -> None:
    """Text of a protobuf string that is not UTF-8: our stubs cannot even send it."""
    good = wire.infer(PROMPT, max_tokens=1).SerializeToString()
    call = shared.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )(iter([b"\x0a\x02\xff\xfe", good]))
    first, second = call
    assert "UTF-8" in first.error_message
    assert second.error_message == ""


def test_cancelling_a_stream_frees_its_requests_within_a_step(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    stream = Stream(running)
    for name in "ab":
        stream.send(wire.infer(PROMPT, max_tokens=200, ignore_eos=True), name)
    running.gate.allow(1)
    stream.receive()
    wire.eventually(lambda: wire.admitted(running) == 2)
    stream.call.cancel()
    wire.eventually(lambda: wire.noticed_cancel(running, 2))
    running.gate.allow(1)  # the step the engine was in when the client left
    wire.eventually(lambda: not running.engine().has_work)
    assert running.gate.steps_run <= 2
    assert running.engine().cache_usage_ratio == 0.0
    running.gate.open()
    running.check_serves()
    assert running.sample("slo_requests_total", slo_class="default", outcome="cancelled") == 2


def test_the_deadline_of_the_stream_bounds_its_requests(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    stream = Stream(running, timeout=0.3)
    stream.send(wire.infer(PROMPT, max_tokens=200, ignore_eos=True))
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    running.gate.open()
    wire.eventually(lambda: not running.engine().has_work)


def test_a_client_that_asks_for_a_status_gets_one_and_the_time_it_took(shared: Any, wire: Any) -> None:
    requests = iter([wire.infer(PROMPT, max_tokens=2), wire.infer(PROMPT, operating_point="depth:9")])
    call = shared.oip.ModelStreamInfer(requests, timeout=20, metadata=(("triton_grpc_error", "true"),))
    with pytest.raises(grpc.RpcError) as failed:
        list(call)
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    trailers = dict(failed.value.trailing_metadata())
    assert "operating_point" in trailers["x-stepwell-reason"]
    assert 0.0 < float(trailers["x-stepwell-total-ms"]) < 20e3
    shared.check_serves()


def test_an_error_within_the_stream_says_how_long_it_took(shared: Any, wire: Any, stream: Stream) -> None:
    stream.send(wire.infer(PROMPT, operating_point="depth:9"), "bad")
    (response,) = stream.until_final()
    assert "operating_point" in response.error_message
    assert 0.0 < response.infer_response.parameters["total_ms"].double_param < 30e3
