"""The planner as C extensions: they build, decide what the tree decides, and keep every invariant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

DECISIONS = Path(__file__).with_name("decisions.py")


def why_not() -> str:
    compiler = str(sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler: {compiler}"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return "" if header.is_file() else f"no {header}"


@pytest.fixture(scope="module")
def compiled(root: Path, tmp_path_factory: pytest.TempPathFactory, copy_packages: Callable[..., None]) -> Path:
    """An installation beside the tree."""
    if reason := why_not():
        pytest.skip(reason)
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("compiled")
    copy_packages(tree)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, tree)
    shutil.copytree(root / "typings", tree / "typings", symlinks=True)
    flags = ["--no-build-isolation", "--no-deps", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(target), str(tree)]
    subprocess.run(command, check=True, env={**os.environ, "STEPWELL_COMPILE": "1"})
    return target


def run(python_path: Path | None, *arguments: str, cwd: Path) -> list[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(python_path)} if python_path else {})}
    done = subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True, cwd=cwd, env=environment
    )
    return done.stdout.splitlines()


def test_it_decides_what_the_tree_decides(compiled: Path, tmp_path: Path) -> None:
    kind, *decisions = run(compiled, str(DECISIONS), cwd=tmp_path)
    tree_kind, *expected = run(None, str(DECISIONS), cwd=tmp_path)
    assert (kind, tree_kind) == ("compiled", "interpreted")
    assert decisions == expected
    outcomes = {word for line in decisions for word in line.split()[2:-1]}
    assert {"met", "missed", "shed", "expired", "failed"} <= outcomes


@pytest.mark.parametrize("tests", ["replay/test_campaign.py", "engine_process"])
def test_it_passes_the_tests_of_a_campaign_and_of_an_engine_in_its_process(
    compiled: Path, root: Path, tests: str
) -> None:
    summary = run(compiled, "-m", "pytest", f"tests/serving/{tests}", "-q", "-p", "no:cacheprovider", cwd=root)[-1]
    assert " passed" in summary
    assert "failed" not in summary
