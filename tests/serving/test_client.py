"""Stepwell's own service, through the typed client."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import stepwell.serving
from stepwell.serving.client import Client, RequestFailedError


@pytest.fixture(scope="module")
def client(shared: Any) -> Iterator[Client]:
    with Client(shared.address) as client:
        yield client


def test_generate_yields_pieces_and_then_a_report(client: Client, shared: Any, wire: Any) -> None:
    *pieces, last = client.generate("tiny", "def f(", max_tokens=7, ignore_eos=True, slo_ms=60_000)
    assert all(piece.report is None for piece in pieces)
    report = last.report
    assert report is not None
    assert (report.operating_point, report.quality, report.degraded) == ("depth:2", 1.0, False)
    assert (report.outcome, report.finish_reason, report.slo_ms, report.slo_met) == ("met", "length", 60_000.0, True)
    assert (report.prompt_tokens, report.generated_tokens, report.tokens_per_level) == (6, 7, {"depth:2": 7})
    assert report.predicted_ms > 0
    assert report.ttft_ms is not None
    assert report.tpot_ms is not None
    assert 0 < report.ttft_ms < report.total_ms
    oip = shared.oip.ModelInfer(wire.infer("def f(", max_tokens=7, ignore_eos=True))
    assert [i for piece in pieces for i in piece.token_ids] == wire.output(oip, "output_ids")
    assert "".join(piece.text for piece in pieces) == wire.output(oip, "text")


def test_complete_is_the_same_at_once(client: Client) -> None:
    chunks = list(client.generate("tiny", [1, 2, 3], max_tokens=4, ignore_eos=True, logprobs=True))
    whole = client.complete("tiny", [1, 2, 3], max_tokens=4, ignore_eos=True, logprobs=True)
    assert whole.token_ids == tuple(i for chunk in chunks for i in chunk.token_ids)
    assert len(whole.logprobs) == 4
    assert all(value <= 0 for value in whole.logprobs)
    assert whole.report.generated_tokens == 4
    assert client.complete("tiny", [1, 2, 3], max_tokens=4).logprobs == ()


def test_every_option_reaches_the_server(client: Client) -> None:
    options: dict[str, Any] = {"ignore_eos": True, "temperature": 1.5, "top_k": 100, "top_p": 0.9}
    first = client.complete("tiny", "x", max_tokens=8, seed=1, **options)
    assert first.token_ids == client.complete("tiny", "x", max_tokens=8, seed=1, **options).token_ids
    answers = {client.complete("tiny", "x", max_tokens=8, seed=seed, **options).token_ids for seed in range(4)}
    assert len(answers) > 1
    text = client.complete("tiny", "x", max_tokens=8, ignore_eos=True).text
    stopped = client.complete("tiny", "x", max_tokens=8, ignore_eos=True, stop=[text[2]])
    assert stopped.text == text[: text.index(text[2])]
    assert stopped.report.finish_reason == "stop"
    pinned = client.complete("tiny", "x", max_tokens=1, operating_point="width:0")
    assert pinned.report.operating_point == "width:0"
    tight = client.complete("tiny", "x", max_tokens=1, slo_class="tight", priority=3, min_quality=0.7)
    assert tight.report.quality >= 0.7
    assert client.complete("tiny", "x", max_tokens=1, ttft_ms=0.001).report.outcome == "missed"
    assert not client.complete("tiny", "x", max_tokens=2, ignore_eos=True, tpot_ms=1e-6).report.slo_met


def test_models_and_description(client: Client) -> None:
    tiny, token_only = client.models()
    assert (tiny.name, tiny.ready, tiny.context_length) == ("tiny", True, 256)
    assert token_only.name == "token-only"
    found = client.describe("tiny")
    assert (found.default_ladder, found.vocab_size, found.context_length, found.ready) == ("depth", 257, 256, True)
    assert found.quality_metric["name"] == "bits_per_byte"
    depth, width = found.ladders
    assert [(p.name, p.quality, p.metric) for p in depth.points] == [
        ("depth:0", 0.5, 4.0),
        ("depth:1", 0.8, 2.5),
        ("depth:2", 1.0, 2.0),
    ]
    assert (depth.kv, width.kv) == ("exact", "approximate")
    assert width.points[0].metric is None
    for ladder in found.ladders:
        costs = [point.cost for point in ladder.points]
        assert costs == sorted(costs)
        assert costs[-1] == 1.0
        assert all(p.cost == pytest.approx(p.parameters / ladder.points[-1].parameters) for p in ladder.points)


@pytest.mark.parametrize(
    ("model", "prompt", "options", "status", "part"),
    [
        ("gpt", "x", {}, "NOT_FOUND", "'gpt'"),
        ("tiny", "", {}, "INVALID_ARGUMENT", "empty"),
        ("tiny", [], {}, "INVALID_ARGUMENT", "empty"),
        ("tiny", [257], {}, "INVALID_ARGUMENT", "257"),
        ("tiny", [-(2**70)], {}, "INVALID_ARGUMENT", "cannot be sent"),
        ("tiny", "\ud800", {}, "INVALID_ARGUMENT", "cannot be sent"),
        ("tiny", "x", {"slo_ms": -1.0}, "INVALID_ARGUMENT", "slo_ms"),
        ("tiny", "x", {"slo_ms": math.nan}, "INVALID_ARGUMENT", "slo_ms"),
        ("tiny", "x", {"slo_class": "gold"}, "INVALID_ARGUMENT", "'gold'"),
        ("tiny", "x", {"priority": -1}, "INVALID_ARGUMENT", "priority"),
        ("tiny", "x", {"min_quality": 2.0}, "INVALID_ARGUMENT", "min_quality"),
        ("tiny", "x", {"operating_point": "depth:7"}, "INVALID_ARGUMENT", "'depth:7'"),
        ("tiny", "x", {"max_tokens": 0}, "INVALID_ARGUMENT", "max_tokens"),
        ("tiny", "x", {"temperature": -0.1}, "INVALID_ARGUMENT", "temperature"),
        ("tiny", "x", {"top_p": 0.0}, "INVALID_ARGUMENT", "top_p"),
        ("tiny", "x", {"stop": [""]}, "INVALID_ARGUMENT", "stop"),
        ("tiny", "x", {"stop": ["a"] * 17}, "INVALID_ARGUMENT", "stop"),
    ],
)
def test_errors(client: Client, model: str, prompt: Any, options: dict[str, Any], status: str, part: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        client.complete(model, prompt, **options)
    assert caught.value.status == status
    assert part in caught.value.message
    assert client.complete("tiny", "x", max_tokens=1).report.generated_tokens == 1


def test_a_request_without_prompt(shared: Any) -> None:
    import grpc

    call = shared.channel.unary_stream("/stepwell.v1.Stepwell/Generate")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(b"\x0a\x04tiny"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "prompt" in caught.value.details()


def test_unknown_model_cannot_be_described(client: Client) -> None:
    with pytest.raises(RequestFailedError, match="NOT_FOUND"):
        client.describe("gpt")


def test_no_server_is_an_error_too() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(RequestFailedError) as caught:
        client.models()
    assert caught.value.status == "UNAVAILABLE"


def test_closing_the_iterator_frees_the_request(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    with Client(running.address) as client:
        pieces = client.generate("tiny", "x", max_tokens=200, ignore_eos=True)
        running.gate.allow(1)
        next(pieces)
        pieces.close()
        wire.eventually(lambda: wire.noticed_cancel(running))
        running.gate.allow(1)  # the step that was on its way
        wire.eventually(lambda: not running.engine().has_work)
        assert running.gate.steps_run <= 2


def test_the_package_offers_client_and_engine() -> None:
    from stepwell.serving.offline import Engine

    assert stepwell.serving.Client is Client
    assert stepwell.serving.Engine is Engine
    assert {"Client", "Engine"} <= set(dir(stepwell.serving))
    with pytest.raises(AttributeError, match="Klient"):
        _ = stepwell.serving.Klient  # type: ignore[attr-defined]


def test_the_client_needs_no_torch() -> None:
    code = "import sys; from stepwell.serving import Client; print({'torch', 'numpy', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
