"""What the tests of the repository itself share: where it is, and its packages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGES = ("models", "schedulers", "serving")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def sources(root: Path) -> list[Path]:
    """Every hand-written Python file of the packages."""
    found = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return sorted(path for path in found if path.parent != root / "serving" / "pb")


@pytest.fixture(scope="session")
def copy_packages(root: Path) -> Callable[..., None]:
    """``copy_packages(to, *ignored)`` copies the package folders, less caches and what matches the patterns."""

    def copy(to: Path, *ignored: str) -> None:
        for package in PACKAGES:
            shutil.copytree(root / package, to / package, ignore=shutil.ignore_patterns("__pycache__", ".*", *ignored))

    return copy
