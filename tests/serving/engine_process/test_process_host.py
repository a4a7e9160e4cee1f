"""A real server whose engine is a process of its own: what it serves, what it refuses, and what it survives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from stepwell.serving.app import Server
from stepwell.serving.background import BackgroundServer
from stepwell.serving.config import ModelConfig, load_config
from stepwell.serving.engine_process.host import ProcessHost, WorkerProcess
from stepwell.serving.pb import inference_pb2_grpc


@contextlib.contextmanager
def serve(tiny: Path, engine_nice: int = 0, **model: Any) -> Iterator[SimpleNamespace]:
    model = {"source": str(tiny), "kv_cache_tokens": 4096, "page_tokens": 16, "policy": "max_quality", **model}
    config = load_config(
        None, {"grpc_port": 0, "http_port": 0, "models": [model], "threads": 1, "engine_nice": engine_nice}
    )
    server = Server(config)
    with BackgroundServer(server) as background, grpc.insecure_channel(background.address) as channel:
        yield SimpleNamespace(
            server=server,
            oip=inference_pb2_grpc.GRPCInferenceServiceStub(channel),
            host=lambda: server.plane.models["tiny"].hosted.host,
            sample=lambda name, **labels: (
                server.metrics.registry.get_sample_value(f"stepwell_{name}", {"model": "tiny", **labels}) or 0.0
            ),
        )


@pytest.fixture(scope="module")
def running(tiny: Path) -> Iterator[SimpleNamespace]:
    with serve(tiny, engine_nice=4) as running:
        yield running


@pytest.mark.skipif(sys.platform != "linux", reason="threads have nice values of their own on Linux only")
def test_the_engines_thread_is_nicer_than_the_one_that_answers_the_server(running) -> None:
    pid, ours = running.host().worker.pid, os.getpriority(os.PRIO_PROCESS, 0)
    nice_of = {int(t): os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir(f"/proc/{pid}/task")}
    assert nice_of.pop(pid) == ours
    assert min(19, ours + 4) in nice_of.values()


def test_the_engine_is_another_process_and_answers_the_same(running, shared, wire) -> None:
    assert isinstance(running.host(), ProcessHost)
    assert running.host().worker.pid != os.getpid()
    for prompt in ("def f(", [1, 2, 3]):
        here, there = (
            s.oip.ModelInfer(wire.infer(prompt, max_tokens=20, temperature=0.8, seed=3), timeout=20)
            for s in (shared, running)
        )
        assert wire.output(here, "output_ids") == wire.output(there, "output_ids")
        assert wire.output(here, "text") == wire.output(there, "text")


def test_tokens_are_streamed_and_counted(running, wire) -> None:
    before = running.sample("tokens_total", kind="generated")
    answers = list(running.oip.ModelStreamInfer(iter([wire.infer("abc", max_tokens=30, ignore_eos=True)]), timeout=20))
    assert sum(len(wire.output(a.infer_response, "output_ids")) for a in answers) == 30
    assert answers[-1].infer_response.parameters["generated_tokens"].int64_param == 30
    # A step is counted after its tokens have left: a step of an earlier request may still be missing in ``before``.
    wire.eventually(lambda: running.sample("tokens_total", kind="generated") >= before + 30)
    assert running.sample("step_seconds_count", kind="decode") > 0
    assert 0.0 <= running.host().cache_usage_ratio < 1.0


def test_what_the_engine_cannot_take_is_told_as_in_a_thread(running, shared, wire) -> None:
    call = wire.infer("abc", max_tokens=9, slo_ms=1e-6)
    with pytest.raises(grpc.RpcError) as late:
        running.oip.ModelInfer(call, timeout=20)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.RpcError) as here:
        shared.oip.ModelInfer(wire.infer("x", operating_point="depth:9"), timeout=20)
    with pytest.raises(grpc.RpcError) as there:
        running.oip.ModelInfer(wire.infer("x", operating_point="depth:9"), timeout=20)
    assert here.value.details() == there.value.details()


def test_a_refusal_is_counted_once(tiny: Path, wire) -> None:
    with serve(tiny, policy="staircase") as running:
        with pytest.raises(grpc.RpcError) as refused:
            running.oip.ModelInfer(wire.infer([1] * 200, max_tokens=50, ttft_ms=1e-3, tpot_ms=1e-3), timeout=20)
        assert refused.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert running.sample("slo_requests_total", slo_class="custom", outcome="shed") + running.sample(
            "slo_requests_total", slo_class="default", outcome="shed"
        ) == pytest.approx(1.0)
        assert running.server.plane.models["tiny"].statistics.fail.count == 1


def test_a_client_that_leaves_frees_its_request(running, wire) -> None:
    call = running.oip.ModelStreamInfer(iter([wire.infer("abc", max_tokens=200, ignore_eos=True)]), timeout=20)
    next(call)
    call.cancel()
    wire.eventually(lambda: running.host().num_running == 0)
    assert not running.host()._open


def test_a_signal_meant_for_the_server_does_not_end_the_engine(running, wire) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(running.host().worker.pid, number)
    assert running.oip.ModelInfer(wire.infer("abc", max_tokens=2), timeout=20)


def test_an_engine_that_dies_fails_its_requests_and_is_started_again(tiny: Path, wire) -> None:
    with serve(tiny) as running:
        host, served = running.host(), running.server.plane.models["tiny"]
        stream = running.oip.ModelStreamInfer(
            iter([wire.infer("abc", max_tokens=200, ignore_eos=True, operating_point="depth:0")]), timeout=20
        )
        next(stream)
        os.kill(host.worker.pid, signal.SIGKILL)
        *_, last = stream
        assert "failed" in last.error_message or last.infer_response.parameters["triton_final_response"].bool_param
        wire.eventually(lambda: served.hosted_or_none is not None and served.hosted_or_none.host is not host, 60.0)
        assert running.oip.ModelInfer(wire.infer("abc", max_tokens=2), timeout=20)
        ended = {o: running.sample("slo_requests_total", slo_class="default", outcome=o) for o in ("met", "failed")}
        assert sum(ended.values()) == 2
        assert not host._open


def test_the_process_ends_with_the_server(tiny: Path) -> None:
    with serve(tiny) as running:
        process = running.host().worker._process
        assert process.poll() is None
    assert process.returncode == 0


def test_a_model_that_cannot_be_opened_is_an_error_here(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"), serve(broken):
        pass
    (broken / "config.json").write_text(json.dumps({"model_type": "other"}))
    with pytest.raises(ValueError, match="other"), serve(broken):
        pass


def test_an_engine_that_dies_while_it_loads_is_an_error_too(tiny: Path) -> None:
    worker = WorkerProcess()
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(ValueError, match=r"'tiny': its engine ended while it loaded \(signal 9\)"):
        worker.open(ModelConfig(str(tiny)), 1)
    worker.kill()
