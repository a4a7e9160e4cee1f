"""Running commands in this process, and what a failed one must look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from stepwell.serving.cli.main import main


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document it must be."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """What a failed command said: one line, no trace, nothing on standard output."""
        assert self.status == 1
        assert self.out == ""
        assert "Traceback" not in self.err
        *progress, line = self.err.splitlines()
        assert line.startswith("error: ")
        assert not any(remark.startswith("error") for remark in progress)
        return line


Run = Callable[..., Ran]


@pytest.fixture
def stepwell(capsys: pytest.CaptureFixture[str]) -> Run:
    """``stepwell("ladder", "nested-lm")`` as from the command line."""

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        try:
            status = main([str(item) for item in argv])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run
