"""What the Makefile installs and when. Its commands are stand-ins here that note down what they were called with."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMANDS = ("python", "stepwell", "lint-imports")


@dataclass(frozen=True)
class Project:
    """A folder with the Makefile, its pins, and an environment of stand-ins."""

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def add_command(self, path: Path, exit_status: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "{path.name} $@" >> {self.log}\nexit {exit_status}\n')
        path.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs make as from a shell: without the options of a make that runs the tests."""
        inherited = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"}
        self.log.write_text("")
        command = ["make", *arguments]
        return subprocess.run(command, cwd=self.folder, env=inherited, capture_output=True, text=True, check=False)

    def calls(self, *arguments: str) -> list[str]:
        """What a successful make called."""
        done = self.make(*arguments)
        assert done.returncode == 0, done.stderr
        return self.log.read_text().splitlines()

    def installs(self, *arguments: str) -> list[str]:
        """What a successful make installed, the last word of each pip command."""
        return [call.split()[-1] for call in self.calls(*arguments) if " pip install " in call]


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Project:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    made = Project(tmp_path)
    for name in COMMANDS:
        made.add_command(tmp_path / ".venv" / "bin" / name)
    return made


def test_demo_installs_once_what_it_needs_and_runs(project: Project) -> None:
    first = project.calls("demo")
    assert first[-1] == "stepwell demo"
    assert [call.split()[-1] for call in first if " pip install " in call] == ["."]
    assert project.calls("demo") == ["stepwell demo"]


def test_the_test_environment_serves_the_demo_too(project: Project) -> None:
    assert project.installs("test") == [".[test]"]
    assert project.installs("demo", "test") == []


def test_the_tests_add_to_the_environment_of_the_demo(project: Project) -> None:
    assert project.installs("demo") == ["."]
    assert project.installs("test") == [".[test]"]


@pytest.mark.parametrize("pin", ["pyproject.toml", "constraints.txt"])
def test_changed_pins_install_again(project: Project, pin: str) -> None:
    project.calls("demo", "test")
    later = time.time() + 60
    os.utime(project.folder / pin, (later, later))
    assert project.installs("demo") == ["."]


def test_tests_run_after_every_linter(project: Project) -> None:
    tools = [call.partition(" -m ")[2] or call for call in project.calls("test")][-5:]
    assert [tool.split()[0] for tool in tools] == ["ruff", "ruff", "mypy", "lint-imports", "pytest"]


def test_a_failed_install_is_tried_again(project: Project) -> None:
    project.add_command(project.folder / ".venv" / "bin" / "python", exit_status=1)
    assert project.make("demo").returncode != 0
    project.add_command(project.folder / ".venv" / "bin" / "python")
    assert project.installs("demo") == ["."]


def test_an_unfit_python_is_refused_with_the_remedy(project: Project) -> None:
    shutil.rmtree(project.folder / ".venv")
    project.add_command(project.folder / "python3.9", exit_status=1)
    done = project.make("demo", f"PYTHON={project.folder / 'python3.9'}")
    assert done.returncode != 0
    assert "needs Python 3.10 to 3.13" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (project.folder / ".venv").exists()
