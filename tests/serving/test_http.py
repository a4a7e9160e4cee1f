"""The HTTP port."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from stepwell.serving.http import HttpServer


class State:
    problem = ""


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def server(state: State) -> Iterator[HttpServer]:
    registry = CollectorRegistry()
    Counter("stepwell_things", "Things.", registry=registry).inc(5)
    server = HttpServer("127.0.0.1", 0, registry, lambda: state.problem)
    server.start()
    yield server
    server.stop()


def get(server: HttpServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.headers["Content-Type"], body


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name=x"])
def test_metrics_in_the_text_format(server: HttpServer, path: str) -> None:
    status, content_type, body = get(server, path)
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    assert "stepwell_things_total 5.0" in body


def test_metrics_in_openmetrics_if_asked(server: HttpServer) -> None:
    _, content_type, body = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_ready_says_why_not(server: HttpServer, state: State) -> None:
    assert get(server, "/readyz")[0] == 200
    state.problem = "draining"
    status, _, body = get(server, "/readyz")
    assert (status, body) == (503, "draining\n")
    assert get(server, "/healthz")[0] == 200, "alive although not ready"


def test_head_has_no_body(server: HttpServer) -> None:
    assert get(server, "/healthz", "HEAD") == (200, "text/plain; charset=utf-8", "")


def test_other_paths_and_methods(server: HttpServer) -> None:
    status, _, body = get(server, "/secret")
    assert status == 404
    assert "/metrics" in body
    assert get(server, "/metrics", "POST")[0] == 501


def test_a_port_in_use_is_an_error(server: HttpServer) -> None:
    with pytest.raises(OSError, match=r"[Aa]ddress"):
        HttpServer("127.0.0.1", server.port, CollectorRegistry(), str)
