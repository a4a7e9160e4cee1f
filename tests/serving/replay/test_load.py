"""The load generator against a server whose every answer the test decides, and against the real one."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

from stepwell.serving.config import SLOClass
from stepwell.serving.grpc.load_wire import NotServedError
from stepwell.serving.grpc.status import TOTAL_KEY
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.pb import inference_pb2_grpc
from stepwell.serving.replay import load
from stepwell.serving.replay.load import LoadRun, Target, probe, send_load
from stepwell.serving.replay.load_report import QUANTILES, refusals, verdicts
from stepwell.serving.replay.workload import Arrival, Workload

CLASSES = {
    "fast": SLOClass(ttft_ms=20.0, tpot_ms=1000.0, min_quality=0.5),
    "slow": SLOClass(deadline_ms=60_000.0),
    "default": SLOClass(),
}
Behaviour = Callable[["FakeServer", pb.ModelInferRequest, Any], Awaitable[list[tuple[int, dict[str, Any]]]]]


class FakeServer(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """A server of the Open Inference Protocol that is not ours. ``behave`` returns the pieces of an answer, each the
    number of its tokens and its parameters, or ends the call."""

    def __init__(self) -> None:
        self.behave: Behaviour = answer(1)
        self.requests: list[pb.ModelInferRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.inputs = ["input_ids", "text"]
        self.shape = [-1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> str:
        self._thread.start()
        return f"localhost:{self._call(self._start())}"

    async def _start(self) -> int:
        self.all_here = asyncio.Event()
        self._server = grpc.aio.server()
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        port: int = self._server.add_insecure_port("localhost:0")
        await self._server.start()
        return port

    def stop(self) -> None:
        self._call(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def die(self) -> None:
        """Close all connections."""
        self._dying = asyncio.ensure_future(self._server.stop(None))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        if request.name != "fake":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(inputs=[tensor(name=name, shape=self.shape) for name in self.inputs])

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        self._saw(request, context)
        pieces = await self.behave(self, request, context)
        return response(request, sum(n for n, _ in pieces), pieces[-1][1])

    async def ModelStreamInfer(self, request_iterator: Any, context: Any) -> None:
        async for request in request_iterator:
            self._saw(request, context)
            for num_tokens, parameters in await self.behave(self, request, context):
                words = parameters.pop("error", "")
                part = response(request, num_tokens, parameters)
                await context.write(pb.ModelStreamInferResponse(infer_response=part, error_message=words))
                await asyncio.sleep(0.002)

    def _saw(self, request: pb.ModelInferRequest, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))


def response(request: pb.ModelInferRequest, num_tokens: int, parameters: dict[str, Any]) -> pb.ModelInferResponse:
    made = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    if num_tokens:
        made.outputs.add(name="output_ids", datatype="INT64", shape=[num_tokens])
        made.raw_output_contents.append(bytes(8 * num_tokens))
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(made.parameters[key], kind, value)
    return made


def answer(*num_tokens: int, after_s: float = 0.0, **parameters: Any) -> Behaviour:
    async def behave(server: FakeServer, request: Any, context: Any) -> list[tuple[int, dict[str, Any]]]:
        await asyncio.sleep(after_s)
        return [(n, dict(parameters) if i == len(num_tokens) - 1 else {}) for i, n in enumerate(num_tokens)]

    return behave


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.address = server.start()  # type: ignore[attr-defined]
    yield server
    server.stop()


@pytest.fixture(params=[False, True], ids=["stream", "unary"])
def unary(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def send(fake: Any, *arrivals: Arrival, **options: Any) -> LoadRun:
    options = {"timeout_s": 20.0, **options}
    target = Target(fake.address, "fake", CLASSES, **options)
    return send_load(Workload.of("made", arrivals or [Arrival(0.0, 3, 1)]), target)


def test_no_send_waits_for_an_answer(fake, unary):
    """The server answers nobody until everybody's request is there: whoever waited for answers would wait for ever."""
    num_requests = 40

    async def stall(server: FakeServer, request: Any, context: Any) -> list[Any]:
        if len(server.requests) == num_requests:
            server.all_here.set()
        await server.all_here.wait()
        return [(1, {})]

    fake.behave = stall
    arrivals = [Arrival(0.005 * i, 3, 1) for i in range(num_requests)]
    run = send(fake, *arrivals, unary=unary, num_connections=1)  # of several, a busy machine may read the later first
    assert [record.status for record in run.records] == ["OK"] * num_requests
    assert [int(request.id) for request in fake.requests] == list(range(num_requests)), "in order"
    by_arrival = [result.total_s for result in run.results]
    # All were answered at the same moment, so each waited longer than the one that was due 5 ms after it.
    assert all(a > b for a, b in zip(by_arrival[::8], by_arrival[8::8], strict=False))


def test_latencies_count_from_when_a_request_was_due(fake, unary, monkeypatch):
    wait = load.LoadWire.wait

    def slow(self: Any, until_s: float) -> None:
        time.sleep(0.06)
        wait(self, until_s)

    monkeypatch.setattr(load.LoadWire, "wait", slow)
    run = send(fake, *[Arrival(0.0, 3, 1)] * 4, unary=unary)
    last = run.records[-1]
    assert last.lag_s >= 4 * 0.06 - load._LEAD_S
    assert last.result.total_s > last.lag_s
    assert last.result.ttft_s is not None
    assert last.result.ttft_s > last.lag_s


@pytest.mark.parametrize("status", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_its_outcome(fake, unary, status):
    async def refuse(server: FakeServer, request: Any, context: Any) -> Any:
        await context.abort(status, "because")

    fake.behave = refuse
    (record,) = send(fake, unary=unary).records
    expected = {"RESOURCE_EXHAUSTED": "shed", "DEADLINE_EXCEEDED": "expired", "CANCELLED": "cancelled"}
    assert record.result.outcome == expected.get(status.name, "failed")
    assert (record.status, record.message) == (status.name, "because")
    assert record.server_total_ms is None
    assert record.result.quality == 0.0
    assert record.result.lateness_ratio is None


def test_a_server_may_say_how_long_a_refusal_took_it(fake, unary):
    async def refuse(server: FakeServer, request: Any, context: Any) -> Any:
        said = {"0": "1.25", "1": "soon", "2": None}[request.id]
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ((TOTAL_KEY, said),) if said else ())

    fake.behave = refuse
    run = send(fake, *[Arrival(0.0, 3, 1)] * 3, unary=unary)
    assert [record.server_total_ms for record in run.records] == [1.25, None, None]
    assert {record.result.outcome for record in run.records} == {"shed"}
    found = refusals(run.records, "shed")
    assert found["in_server_s"] == dict.fromkeys(QUANTILES, 0.00125), "of those that say it"
    assert all(found["answer_s"][q] >= found["answer_from_send_s"][q] > 0.0 for q in QUANTILES)


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        ("request: 8 requests wait already, no more may; retry in 0.1 s (retry after 100 ms)", "shed"),
        ("deadline: of 50 ms passed while the request was waiting; it was dropped", "expired"),
        ("model: not found", "failed"),
    ],
)
def test_errors_told_in_words_within_the_stream(fake, words, outcome):
    async def behave(server: FakeServer, request: Any, context: Any) -> Any:
        return [(0, {"error": words})]

    fake.behave = behave
    (record,) = send(fake).records
    assert record.result.outcome == outcome
    assert record.message == words
    assert fake.metadata[0]["triton_grpc_error"] == "true", "servers that can are asked for a status"


def test_a_stream_that_ends_without_an_answer_failed(fake):
    fake.behave = answer()
    (record,) = send(fake).records
    assert record.result.outcome == "failed"
    assert "without an answer" in record.message


def test_a_server_that_never_answers_is_given_up_on(fake, unary):
    fake.behave = answer(1, after_s=100.0)
    (record,) = send(fake, unary=unary, timeout_s=0.2).records
    assert record.result.outcome == "expired"


def test_a_server_is_told_that_it_is_given_up_on(fake, unary):
    cancelled = threading.Event()

    async def behave(server: FakeServer, request: Any, context: Any) -> Any:
        assert 0.0 < context.time_remaining() < 5.0, "it knows the deadline"
        try:
            await asyncio.sleep(100.0)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return []

    fake.behave = behave
    send(fake, unary=unary, timeout_s=0.2)
    assert cancelled.wait(10.0)


def test_garbage_is_collected_again_after_the_run(fake):
    run = send(fake)
    assert gc.isenabled()
    assert run.records[0].status == "OK"


def test_a_server_that_dies_leaves_no_request_without_an_end(fake, unary):
    async def die(server: FakeServer, request: Any, context: Any) -> Any:
        if request.id == "3":
            await server.die()
        if int(request.id) >= 2:
            await asyncio.sleep(100.0)
        return [(1, {})]

    fake.behave = die
    run = send(fake, *(Arrival(0.05 * i, 3, 1) for i in range(10)), unary=unary)
    assert [record.result.outcome for record in run.records[:2]] == ["met", "met"]
    assert {record.result.outcome for record in run.records[2:4]} <= {"cancelled", "failed"}
    assert [record.status for record in run.records[5:]] == ["UNAVAILABLE"] * 5


def test_tokens_are_counted_and_timed_as_they_come(fake):
    fake.behave = answer(1, 2, 0, 1)
    (result,) = send(fake).results
    assert result.generated_tokens == 4
    assert result.ttft_s is not None
    assert result.tpot_s is not None
    assert 0.0 < result.ttft_s < result.total_s
    assert result.ttft_s + 3 * result.tpot_s == pytest.approx(result.total_s)


def test_a_whole_answer_puts_the_first_token_where_the_server_says(fake):
    fake.behave = answer(5, after_s=0.03, total_ms=30.0, ttft_ms=20.0, generated_tokens=5)
    (result,) = send(fake, unary=True).results
    assert result.ttft_s == pytest.approx(result.total_s - 0.010)
    assert result.tpot_s == pytest.approx(0.010 / 4)
    fake.behave = answer(5)
    (result,) = send(fake, unary=True).results
    assert result.ttft_s == result.total_s, "nothing was reported: all of it came at the end"


def test_this_sides_clock_decides_and_disagreement_is_counted(fake, unary):
    late = Arrival(0.0, 3, 1, "fast")
    fake.behave = answer(1, after_s=0.05, slo_met=True)
    theirs = send(fake, late, unary=unary)
    assert theirs.results[0].outcome == "missed"
    assert theirs.results[0].lateness_ratio is not None
    assert theirs.results[0].lateness_ratio > 1.0
    assert verdicts(theirs.records) == {"compared": 1, "only_server_says_met": 1, "only_client_says_met": 0}
    fake.behave = answer(1, slo_met=False)
    ours = send(fake, Arrival(0.0, 3, 1, "slow"), unary=unary)
    assert ours.results[0].outcome == ("missed" if unary else "met"), "of a whole answer the server saw more"
    assert verdicts(ours.records)["only_client_says_met"] == (not unary)
    fake.behave = answer(1)
    assert verdicts(send(fake, unary=unary).records)["compared"] == 0


def test_what_the_server_reports_is_kept(fake, unary):
    said = {"quality": 0.7, "operating_point": "depth:2", "predicted_ms": 9.5, "queue_ms": 1.5, "total_ms": 11.0}
    fake.behave = answer(1, **said, slo_met=True)
    (record,) = send(fake, unary=unary, quality=0.2).records
    assert (record.result.quality, record.result.operating_point) == (0.7, "depth:2")
    assert (record.predicted_ms, record.queue_ms, record.server_total_ms, record.slo_met) == (9.5, 1.5, 11.0, True)
    fake.behave = answer(1)
    (record,) = send(fake, unary=unary, quality=0.2).records
    assert (record.result.quality, record.result.operating_point) == (0.2, "")
    assert (record.predicted_ms, record.queue_ms, record.server_total_ms, record.slo_met) == (None,) * 4


@pytest.mark.parametrize(
    ("slo_as", "stated"),
    [
        ("class", {"slo_class": "fast"}),
        ("numbers", {"ttft_ms": 20.0, "tpot_ms": 1000.0, "min_quality": 0.5}),
        ("none", {}),
    ],
)
def test_the_slo_is_told_as_asked(fake, slo_as, stated):
    send(fake, Arrival(0.0, 3, 7, "fast"), slo_as=slo_as)
    (request,) = fake.requests
    sent = {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in request.parameters.items()}
    assert sent == {"max_tokens": 7, "ignore_eos": True, **stated}


def test_prompts_are_those_of_the_workload(fake):
    workload = Workload.of("made", [Arrival(0.0, n, 1, prefix=(9,)) for n in (5, 8)])
    send_load(workload, Target(fake.address, "fake", CLASSES, vocab_size=50))
    for number, request in enumerate(sorted(fake.requests, key=lambda r: int(r.id))):
        (data,) = request.raw_input_contents
        ids = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
        assert tuple(ids) == workload.prompt_ids(number, 50)
        assert list(request.inputs[0].shape) == [len(ids)]


def test_a_server_of_texts_gets_a_word_for_each_token(fake):
    send(fake, Arrival(0.0, 6, 1), text=True)
    (request,) = fake.requests
    (data,) = request.raw_input_contents
    assert request.inputs[0].name == "text"
    assert len(data[4:].decode().split(" ")) == 6


@pytest.mark.parametrize("text", [False, True])
def test_a_server_of_batches_gets_a_batch_of_one(fake, text):
    fake.shape = [-1, -1]
    send(fake, Arrival(0.0, 6, 1), text=text)
    (request,) = fake.requests
    assert list(request.inputs[0].shape) == [1, 1 if text else 6]


def test_a_server_that_is_not_there_or_lacks_the_model_is_an_error(fake):
    assert list(probe(fake.address, "fake", 10.0).inputs) == ["input_ids", "text"]
    with pytest.raises(NotServedError, match=r"'other'.*NOT_FOUND"):
        probe(fake.address, "other", 10.0)
    with pytest.raises(NotServedError, match=r"localhost:1 .*DEADLINE_EXCEEDED"):
        probe("localhost:1", "fake", 0.3)


def test_the_real_server_counts_the_same_outcomes(make_server, wire, unary):
    """A step is held up until all are there; then at most one more request than may wait finds room."""
    running = make_server(model={"max_running": 1, "max_waiting": 2, "profile": "default"})
    running.gate.close()
    num_requests, found = 6, []
    workload = Workload.of("made", [Arrival(0.1 * (i > 0), 4, 3, "default") for i in range(num_requests)])
    target = Target(running.address, "tiny", running.server.config.slo_classes, unary=unary, vocab_size=200)
    client = threading.Thread(target=lambda: found.append(send_load(workload, target)))
    client.start()
    wire.eventually(lambda: running.engine()._inbox.num_known == num_requests)
    running.gate.open()
    client.join(30)
    (run,) = found
    outcomes = [result.outcome for result in run.results]
    for name in ("met", "missed", "shed", "expired"):
        counted = running.sample("slo_requests_total", slo_class="default", outcome=name)
        assert counted == outcomes.count(name), name
    assert outcomes.count("shed") >= num_requests - 3
    assert outcomes.count("met") == num_requests - outcomes.count("shed") > 0
    served = [record for record in run.records if record.result.served]
    assert all(record.result.generated_tokens == 3 for record in served)
    assert all(record.result.operating_point and record.slo_met for record in served)
    assert all(record.server_total_ms / 1e3 <= record.result.total_s for record in served)
    assert all("retry after" in record.message for record in run.records if not record.result.served)
