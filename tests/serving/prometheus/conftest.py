"""A real Prometheus for the tests here.

It is the one on PATH or the one that ``make test`` puts beside its Python (``install.py``). Without any the tests are
skipped; they fail if STEPWELL_REQUIRE_PROMETHEUS is set.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
global: {scrape_interval: 500ms, scrape_timeout: 500ms}
scrape_configs: [{job_name: stepwell, static_configs: [{targets: ["TARGET"]}]}]
"""
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def tool(name: str) -> str:
    """Path of ``prometheus`` or ``promtool``; skips the test if there is none."""
    if path := shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent)):
        return path
    why = f"no {name} on PATH or beside {Path(sys.executable).name}: install the package prometheus, or see make test"
    return pytest.fail(why) if os.environ.get("STEPWELL_REQUIRE_PROMETHEUS") else pytest.skip(why)


def get(url: str) -> str:
    with LOCAL.open(url, timeout=10) as response:
        return response.read().decode()  # type: ignore[no-any-return]


class Prometheus:
    """One that runs and scrapes one server twice a second."""

    def __init__(self, program: str, folder: Path, target: str) -> None:
        self._program, self._folder, self.log = program, folder, folder / "log"
        (folder / "prometheus.yml").write_text(CONFIG.replace("TARGET", target))

    def start(self, eventually: Callable[[Callable[[], bool]], None]) -> None:
        for _ in range(3):  # somebody else may take the port between its choice and its use
            self._launch()
            eventually(lambda: self.process.poll() is not None or self._ready())
            if self.process.poll() is None:
                return
        raise AssertionError(self.log.read_text())

    def _launch(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [self._program, f"--config.file={self._folder / 'prometheus.yml'}", "--log.level=warn",
                   f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address={self.address}"]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"})

    def _ready(self) -> bool:
        try:
            return bool(get(f"http://{self.address}/-/ready"))
        except urllib.error.URLError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()

    def api(self, path: str, **parameters: str) -> Any:
        answer = json.loads(get(f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """What PromQL makes of the newest scrape: the values of the remaining labels, by name -> value."""
        data = self.api("query", query=expression)
        assert data["resultType"] == "vector"
        series = [({k: v for k, v in s["metric"].items() if k != "__name__"}, s["value"][1]) for s in data["result"]]
        return {tuple(labels[name] for name in sorted(labels)): float(value) for labels, value in series}

    def value(self, expression: str) -> float | None:
        """Of an expression that leaves no label; None if nothing matches it."""
        return self.query(expression).get(())

    def wait_for(self, expression: str, number: float) -> None:
        """Until ``expression`` has no label left and reaches ``number``."""
        deadline = time.monotonic() + 20
        while (found := self.value(expression)) is None or found < number:
            assert time.monotonic() < deadline, f"{expression} is {found}, not {number}\n{self.log.read_text()}"
            time.sleep(0.05)

    def scrape(self) -> None:
        """Wait until a scrape that starts from now on is in."""
        self.wait_for("max(timestamp(stepwell_slo_requests_total))", time.time())


@pytest.fixture
def scrape_with_prometheus(tmp_path: Path, wire: Any) -> Iterator[Callable[[Any], Prometheus]]:
    """``scrape_with_prometheus(running) -> Prometheus`` that scrapes this server."""
    program = tool("prometheus")
    with ExitStack() as stack:

        def start(running: Any) -> Prometheus:
            prometheus = Prometheus(program, tmp_path, f"127.0.0.1:{running.server.http_port}")
            stack.callback(prometheus.stop)
            prometheus.start(wire.eventually)
            return prometheus

        yield start


@pytest.fixture
def complaints() -> Callable[[Any], str]:
    """``complaints(running)``: what promtool has against a server's metrics; empty if nothing."""
    promtool = tool("promtool")

    def check(running: Any) -> str:
        text = get(f"http://127.0.0.1:{running.server.http_port}/metrics")
        command = [promtool, "check", "metrics"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr or f"exit status {done.returncode}"

    return check
