"""Health, reflection, load, clients that vanish, deadlines, and the orderly end of a server."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from stepwell.serving.app import Server
from stepwell.serving.background import BackgroundServer
from stepwell.serving.config import load_config
from stepwell.serving.pb import inference_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("inference.GRPCInferenceService", "stepwell.v1.Stepwell")


def health(running: Any, name: str = "") -> Any:
    stub = health_pb2_grpc.HealthStub(running.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status


@pytest.mark.parametrize("name", ["", "tiny", "token-only", *SERVICES])
def test_health_of_server_services_and_models(shared: Any, name: str) -> None:
    assert health(shared, name) == SERVING


def test_health_of_what_is_not_there(shared: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health(shared, "absent")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_is_told_to_every_watcher(make_server: Any) -> None:
    running = make_server()
    stub = health_pb2_grpc.HealthStub(running.channel)
    watchers = [stub.Watch(health_pb2.HealthCheckRequest(service="tiny"), timeout=30) for _ in range(3)]
    assert [next(watcher).status for watcher in watchers] == [SERVING] * 3
    watchers[1].cancel()
    running.server.plane.drain()
    assert [next(watcher).status for watcher in (watchers[0], watchers[2])] == [NOT_SERVING] * 2


def test_reflection_lists_and_describes_every_service(shared: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(shared.channel)
    ask = reflection_pb2.ServerReflectionRequest
    (listing,) = stub.ServerReflectionInfo(iter([ask(list_services="")]))
    names = {service.name for service in listing.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    for name in names:
        (found,) = stub.ServerReflectionInfo(iter([ask(file_containing_symbol=name)]))
        assert found.file_descriptor_response.file_descriptor_proto, name


def test_metrics_over_http(shared: Any, wire: Any) -> None:
    shared.oip.ModelInfer(wire.infer("hello", max_tokens=3, ignore_eos=True, slo_class="normal"))
    with urllib.request.urlopen(f"http://127.0.0.1:{shared.server.http_port}/metrics", timeout=10) as response:
        body = response.read().decode()
    for line in (
        'stepwell_slo_requests_total{model="tiny",outcome="met",slo_class="normal"} 1.0',
        'stepwell_served_total{model="tiny",operating_point="depth:2"} 1.0',
        'stepwell_time_to_first_token_seconds_bucket{le="0.5",model="tiny",slo_class="normal"} 1.0',
        'stepwell_slo_ratio_count{model="tiny",slo_class="normal"} 1.0',
        'stepwell_requests_running{model="tiny"} 0.0',
        'stepwell_requests_waiting{model="tiny"} 0.0',
        'stepwell_kv_cache_usage_ratio{model="tiny"} 0.0',
    ):
        assert line in body.splitlines(), line


def test_a_full_queue_refuses_at_once_with_a_hint(make_server: Any, wire: Any) -> None:
    running = make_server(model={"max_running": 1, "max_waiting": 2})
    running.gate.close()
    first = running.oip.ModelInfer.future(wire.infer("a", max_tokens=2, ignore_eos=True))
    wire.eventually(lambda: running.engine().num_running == 1)
    waiting = [running.oip.ModelInfer.future(wire.infer("b", max_tokens=1)) for _ in range(4)]
    wire.eventually(lambda: wire.admitted(running) == 5)
    running.gate.allow(1)
    wire.eventually(lambda: sum(future.done() for future in waiting) == 2)
    refused = [future.exception() for future in waiting if future.done()]
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hint = int(dict(error.trailing_metadata())["retry-after-ms"])
        assert hint > 0
        assert f"retry after {hint} ms" in error.details()
    running.gate.open()
    assert first.result().parameters["generated_tokens"].int64_param == 2
    assert sum(future.exception() is None for future in waiting) == 2
    assert running.sample("shed_total", reason="queue_full") == 2
    assert running.sample("slo_requests_total", slo_class="default", outcome="shed") == 2


def test_an_expired_deadline_is_answered_before_it_is_computed(make_server: Any, wire: Any) -> None:
    running = make_server(model={"max_running": 1})
    running.gate.close()
    first = running.oip.ModelInfer.future(wire.infer("a", max_tokens=2, ignore_eos=True))
    wire.eventually(lambda: running.engine().num_running == 1)
    late = running.oip.ModelInfer.future(wire.infer("b", max_tokens=1, slo_ms=20))
    timed_out = running.oip.ModelInfer.future(wire.infer("b", max_tokens=1, timeout=20_000))
    wire.eventually(lambda: wire.admitted(running) == 3)
    time.sleep(0.03)
    running.gate.allow(1)
    for future in (late, timed_out):
        assert future.exception(timeout=20).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "deadline" in late.exception().details()
    assert "timeout" in timed_out.exception().details()
    running.gate.open()
    first.result(timeout=20)
    assert running.gate.steps_run == 2, "neither of them was computed"
    assert running.sample("slo_requests_total", slo_class="default", outcome="expired") == 2


def test_the_deadline_of_the_call_ends_the_request_within_a_step(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    with pytest.raises(grpc.RpcError) as caught:
        running.oip.ModelInfer(wire.infer("a", max_tokens=200, ignore_eos=True), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    running.gate.allow(1)
    wire.eventually(lambda: not running.engine().has_work)
    assert running.gate.steps_run == 1


def test_a_client_that_vanishes_frees_its_request_within_a_step(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    code = (
        "import sys; from stepwell.serving import Client\n"
        "pieces = Client(sys.argv[1]).generate('tiny', 'x', max_tokens=200, ignore_eos=True)\n"
        "next(pieces); print('got one', flush=True); sys.stdin.read()"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code, running.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with client:
        wire.eventually(lambda: running.engine().num_running == 1)
        running.gate.allow(1)
        assert client.stdout is not None
        assert client.stdout.readline() == "got one\n"
        client.kill()
        client.wait()
        wire.eventually(lambda: wire.noticed_cancel(running))
        running.gate.allow(1)  # the step that was on its way
        wire.eventually(lambda: not running.engine().has_work)
        assert running.gate.steps_run <= 2
    running.gate.open()
    running.check_serves()


def test_draining_finishes_what_was_admitted_and_refuses_the_rest(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    admitted = running.oip.ModelInfer.future(wire.infer("a", max_tokens=5, ignore_eos=True))
    wire.eventually(lambda: running.engine().num_running == 1)
    stopping = threading.Thread(target=running.background._call(running.server.plane.stop(20.0)).result)
    stopping.start()
    wire.eventually(lambda: health(running) == NOT_SERVING)
    assert [health(running, name) for name in ("tiny", *SERVICES)] == [NOT_SERVING] * 3
    with pytest.raises(urllib.error.HTTPError) as not_ready:
        urllib.request.urlopen(f"http://127.0.0.1:{running.server.http_port}/readyz", timeout=10)
    assert not_ready.value.code == 503
    with pytest.raises(grpc.RpcError) as caught:
        running.oip.ModelInfer(wire.infer("b"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "draining" in caught.value.details()
    assert running.sample("shed_total", reason="draining") == 1
    running.gate.open()
    assert admitted.result(timeout=20).parameters["generated_tokens"].int64_param == 5
    stopping.join(20)
    assert not stopping.is_alive()


def test_what_is_not_done_within_the_grace_time_is_answered_unavailable(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.gate.close()
    futures = [running.oip.ModelInfer.future(wire.infer("a", max_tokens=200, ignore_eos=True)) for _ in range(3)]
    wire.eventually(lambda: wire.admitted(running) == 3)
    stopped = running.background._call(running.server.plane.stop(0.05))
    time.sleep(0.06)
    running.gate.allow(1)
    for future in futures:
        error = future.exception(timeout=20)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "stopped" in error.details()
    stopped.result(timeout=20)


SERVE = """
import asyncio, sys
from stepwell.serving.app import Server
from stepwell.serving.config import load_config
from stepwell.serving.pb import inference_pb2_grpc

config = load_config(None, {"models": [sys.argv[1]], "grpc_port": 0, "http_port": 0})
asyncio.run(Server(config).run(lambda server: print(server.grpc_port, flush=True)))
"""


def test_sigterm_ends_the_process_after_its_requests(tiny: Path, wire: Any) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(tiny)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            stream = stub.ModelStreamInfer(iter([wire.infer("a", max_tokens=150, ignore_eos=True)]))
            responses = [next(stream)]
            process.send_signal(signal.SIGTERM)
            responses += list(stream)
        assert responses[-1].infer_response.parameters["generated_tokens"].int64_param == 150
        assert process.wait(30) == 0


def test_a_server_that_cannot_start_leaves_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    good, bad = {"source": str(tiny)}, {"source": str(tmp_path / "absent")}
    server = Server(load_config(None, {"models": [good, bad], "grpc_port": 0, "http_port": 0}))
    with pytest.raises(ValueError, match="absent"):
        BackgroundServer(server).start()
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not [name for name in left if name.startswith("stepwell")]


def test_a_port_in_use_is_said(shared: Any, tiny: Path) -> None:
    for field in ("grpc_port", "http_port"):
        ports = {"grpc_port": 0, "http_port": 0, field: getattr(shared.server, field)}
        with pytest.raises(OSError, match=r"[Aa]ddress|grpc_port"):
            BackgroundServer(Server(load_config(None, {"models": [str(tiny)], **ports}))).start()
