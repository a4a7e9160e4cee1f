"""The wheel holds the tree's packages, whole, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest


@pytest.fixture(scope="module")
def source_tree(root: Path, tmp_path_factory: pytest.TempPathFactory, copy_packages: Callable[..., None]) -> Path:
    """What a wheel is built from, apart from the working tree, where builds would leave files behind."""
    tree = tmp_path_factory.mktemp("tree")
    copy_packages(tree)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    flags = ["--no-build-isolation", "--no-deps", "--disable-pip-version-check", "-q"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, "-w", out, source_tree], check=True)
    (built,) = out.glob("*.whl")
    return ZipFile(built)


def files_of(tree: Path) -> set[str]:
    folders = ("models", "schedulers", "serving")
    files = (path for folder in folders for path in (tree / folder).rglob("*") if path.is_file())
    return {f"stepwell/{path.relative_to(tree).as_posix()}" for path in files}


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: ZipFile, source_tree: Path) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files_of(source_tree)


def test_wheel_carries_the_licence_the_command_and_the_python_range(wheel: ZipFile, source_tree: Path) -> None:
    def read(end: str) -> str:
        (name,) = [name for name in wheel.namelist() if name.endswith(f".dist-info/{end}")]
        return wheel.read(name).decode()

    assert read("licenses/LICENSE") == (source_tree / "LICENSE").read_text()
    assert "stepwell = stepwell.serving.cli.main:main" in read("entry_points.txt")
    assert "Requires-Python: >=3.10" in read("METADATA").splitlines()
    assert "License-Expression: Apache-2.0" in read("METADATA").splitlines()
