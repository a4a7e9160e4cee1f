"""A server in a process of its own, so that a load generator does not share its interpreter."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

START_S = 300.0
"""For loading the models, and measuring their cost the first time."""
_STOP_S = 20.0
_LOG_LINES = 5


class ChildError(Exception):
    """The server did not start. The message ends with the last lines it wrote."""


class ChildServer:
    """``with ChildServer({"models": ["nested-lm"]}) as child: child.address``: ``stepwell serve``, on free ports."""

    def __init__(self, config: Mapping[str, Any], start_s: float = START_S, *, python: str = sys.executable) -> None:
        """``config``: the server's configuration, as in its YAML; ports are chosen. ``start_s``: it must serve by
        then. ``python``: the interpreter whose Stepwell it is."""
        self._config = {**config, "host": "127.0.0.1", "grpc_port": 0, "http_port": 0}
        self._start_s = start_s
        self._python = python
        self.address = ""
        """``host:port`` of gRPC."""
        self.http = ""
        """URL of metrics and health."""

    def start(self) -> None:
        """Start and wait until it serves. Raises ChildError."""
        self._folder = tempfile.TemporaryDirectory(prefix="stepwell-")
        folder = Path(self._folder.name)
        self._log = folder / "server.log"
        config = folder / "stepwell.yaml"
        config.write_text(json.dumps(self._config))  # JSON is YAML
        command = [self._python, "-m", "stepwell.serving.cli.main", "serve", "--config", str(config), "--json"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        try:
            offer = self._offer()
        except BaseException:
            self.stop()
            raise
        self.address, self.http = offer["grpc"], offer["http"]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative = the signal that ended it."""
        return self._process.poll()

    def log_tail(self) -> str:
        """The last lines it wrote, on one line."""
        lines = self._log.read_text(errors="replace").splitlines()
        return " | ".join(lines[-_LOG_LINES:])

    def _offer(self) -> dict[str, Any]:
        """The one document it prints when it serves."""
        assert self._process.stdout is not None
        pipe, text, until = self._process.stdout.fileno(), b"", time.monotonic() + self._start_s
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise ChildError(f"server: not ready within {self._start_s:g} s; its log: {self.log_tail()}")
            piece = os.read(pipe, 1 << 16)
            text += piece
            if not piece:
                raise ChildError(f"server: did not start (exit status {self._process.wait()}); {self.log_tail()}")
            try:
                return dict(json.loads(text))
            except ValueError:
                continue

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> ChildServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
