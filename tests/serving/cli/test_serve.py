from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from stepwell.serving.app import Server
from stepwell.serving.background import BackgroundServer
from stepwell.serving.cli import serve
from stepwell.serving.client import Client
from stepwell.serving.config import load_config

COMMAND = [sys.executable, "-m", "stepwell.serving.cli.main", "serve"]
FREE = ["--grpc-port", "0", "--http-port", "0"]


@pytest.fixture
def stepwell_server() -> Iterator[Server]:
    with BackgroundServer(
        Server(load_config(None, {"models": ["nested-lm"], "grpc_port": 0, "http_port": 0}))
    ) as running:
        yield running.server


class Serving:
    """A ``stepwell serve`` process that has said what it listens on."""

    def __init__(self, *argv: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *argv, *FREE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        """The next line of standard output."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.process.stderr.read()}"
        return line.rstrip("\n")

    def lines_until(self, last: str) -> str:
        lines = [self.line()]
        while lines[-1] != last:
            lines.append(self.line())
        return "\n".join(lines)


@pytest.fixture(scope="module")
def announced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Any]]:
    config = tmp_path_factory.mktemp("serve") / "stepwell.yaml"
    config.write_text("grpc_port: 1\nmodels:\n  - {source: nested-lm, name: small, kv_cache_mib: 16}\n")
    serving = Serving("--config", str(config), "--json")
    try:
        yield serving, json.loads(serving.lines_until("}"))
    finally:
        serving.process.kill()
        serving.process.communicate()


def test_it_serves_what_the_configuration_says_where_the_options_say(announced):
    _, document = announced
    assert document["models"]["small"]["operating_points"] >= 32
    with Client(document["grpc"]) as client:
        completion = client.complete("small", "import ", max_tokens=3, operating_point="min")
    assert completion.report.generated_tokens == 3
    for path in ("/healthz", "/readyz", "/metrics"):
        with urllib.request.urlopen(document["http"] + path, timeout=10) as answer:
            assert answer.status == 200


def test_a_port_that_is_taken_is_one_line(announced, stepwell):
    port = announced[1]["grpc"].rpartition(":")[2]
    ran = stepwell("serve", "nested-lm", "--grpc-port", port, "--http-port", 0)
    assert port in ran.error
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = stepwell("serve", "nested-lm", "--grpc-port", 0, "--http-port", taken.getsockname()[1])
    assert ran.status == 1
    assert "Traceback" not in ran.err


def test_sigterm_ends_it_cleanly(announced):
    serving, _ = announced
    serving.process.send_signal(signal.SIGTERM)
    out, err = serving.process.communicate(timeout=60)
    assert serving.process.returncode == 0
    assert out == ""
    assert "Traceback" not in err


def test_the_announcement_for_people_says_the_same(stepwell_server, capsys):
    serve.announce(stepwell_server)
    listening, model = capsys.readouterr().out.splitlines()
    assert f"gRPC on 127.0.0.1:{stepwell_server.grpc_port}, " in listening
    assert f"http://127.0.0.1:{stepwell_server.http_port} " in listening
    assert model.startswith("model nested-lm (generate): context 1024 tokens; ")
    assert "default (" in model


def test_configurations_that_cannot_be_used_are_one_line(stepwell, tmp_path):
    assert "missing.yaml" in stepwell("serve", "--config", tmp_path / "missing.yaml").error
    config = tmp_path / "stepwell.yaml"
    config.write_text("models: [nested-lm]\ngrpc_prot: 8001\n")
    assert "grpc_prot: unknown key; did you mean 'grpc_port'?" in stepwell("serve", "--config", config).error
    assert "grpc_port" in stepwell("serve", "nested-lm", "--grpc-port", 70000).error


def test_a_model_that_cannot_be_opened_is_one_line(stepwell):
    assert "no-such-model" in stepwell("serve", "no-such-model", *FREE).error
