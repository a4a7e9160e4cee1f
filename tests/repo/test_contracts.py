"""The linters are configured to catch what they are there for. That the tree passes them is `make lint`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LAYERS = "serving -> models | schedulers"
VIOLATIONS = [
    ("models", "import stepwell.serving.engine", LAYERS),
    ("models", "from stepwell.schedulers.request import SLO", LAYERS),
    ("schedulers", "from stepwell.models.ladder import Ladder", LAYERS),
    ("schedulers", "from stepwell import serving", LAYERS),
    ("schedulers", "import torch", "schedulers: standard library"),
    ("models", "import grpc", "models know no requests"),
    ("models", "import ray", "models know no requests"),
    ("serving/engine", "from stepwell.serving.pb import inference_pb2", "protobuf stops"),
    ("serving/cli", "def f():\n    import stepwell.serving.pb.stepwell_pb2", "protobuf stops"),
]


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory, copy_packages: Callable[..., None]) -> Path:
    """A copy of the packages, laid out as they are imported."""
    tree = tmp_path_factory.mktemp("contracts")
    shutil.copy(root / "pyproject.toml", tree)
    (tree / "stepwell").mkdir()
    copy_packages(tree / "stepwell", "shipped")
    return tree


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_import_contract_is_kept(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("package", "statement", "contract"), VIOLATIONS)
def test_import_contract_catches(tree: Path, package: str, statement: str, contract: str) -> None:
    violator = tree / "stepwell" / package / "violator.py"
    violator.write_text(f"{statement}\n")
    try:
        done = lint_imports(tree)
    finally:
        violator.unlink()
    broken = [line for line in done.stdout.splitlines() if line.endswith(" BROKEN")]
    assert done.returncode == 1
    assert [line for line in broken if line.startswith(contract)], done.stdout
    assert "violator" in done.stdout


@pytest.mark.parametrize("package", ["serving", "models", "schedulers"])
@pytest.mark.parametrize("form", ["import {}", "from {} import x", "import {}.x", "from {}.x import y"])
def test_ruff_bans_the_bare_names_of_the_packages(root: Path, package: str, form: str) -> None:
    def banned(statement: str) -> bool:
        flags = ["--no-cache", "--quiet", "--select", "TID251", "--stdin-filename", "tests/example.py", "-"]
        command = [sys.executable, "-m", "ruff", "check", *flags]
        done = subprocess.run(command, cwd=root, input=statement, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        return "TID251" in done.stdout

    assert banned(form.format(package))
    assert not banned(form.format(f"stepwell.{package}"))
