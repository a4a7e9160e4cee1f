"""The documents a newcomer and a maintainer look for are there, and what they point at exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_document_has_a_title_and_a_text(root: Path, name: str) -> None:
    title, *text = (root / name).read_text().splitlines()
    assert title.startswith("# ")
    assert any(text)


def test_links_lead_somewhere(root: Path) -> None:
    for document in [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "benchmarks").rglob("*.md")]:
        targets = [target for target in LINK.findall(document.read_text()) if not target.startswith(("http", "mailto"))]
        dead = [target for target in targets if not (document.parent / target).exists()]
        assert not dead, document.relative_to(root)


def test_changelog_has_the_version(root: Path) -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert re.search(rf"^## \[?{re.escape(version)}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_readme_names_the_commands_and_ci_runs_the_tests(root: Path) -> None:
    readme = (root / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
    assert os.access(root / ".ci" / "run", os.X_OK)
    assert "make test" in (root / ".ci" / "run").read_text()
