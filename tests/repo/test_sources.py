"""Rules of the sources that no linter has: no pickle, short files, schedulers without asyncio."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
PICKLING_NAMES = {"torch.load", "torch.save", "numpy.load", "allow_pickle"}


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name bound in the file, full name it stands for) of everything that is imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a chain of attributes that starts at a name, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def pickling_in(source: str) -> set[str]:
    """Full names in ``source`` that read or write pickles: pickling modules imported, pickling functions used."""
    tree = ast.parse(source)
    imported = dict(imports_of(tree))
    used = set(imported.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, dot, rest = dotted(node).partition(".")
            used.add(f"{imported.get(head, '')}{dot}{rest}")
        elif isinstance(node, ast.keyword):
            used.add(node.arg or "")
    return {name for name in used if name.partition(".")[0] in PICKLES or name in PICKLING_NAMES}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import torch\ntorch.load('weights.bin')",
        "import torch as t\nload = t.load",
        "from torch import load as read",
        "import torch.nn\ntorch.save({}, 'weights.bin')",
        "import numpy as np\nnp.load('weights.npy')",
        "reader(path, allow_pickle=True)",
    ],
)
def test_the_search_for_pickle_finds(source: str) -> None:
    assert pickling_in(source)


def test_the_search_for_pickle_spares_other_loads() -> None:
    assert not pickling_in(
        "import json\nimport torch\njson.load(f)\ntorch.nn.load\nself.load()\ncheckpoint.torch.load()"
    )


def test_no_source_pickles(sources: list[Path], root: Path) -> None:
    for path in [*sources, *(root / "benchmarks").rglob("*.py")]:
        assert not pickling_in(path.read_text()), path.relative_to(root)


def test_schedulers_import_the_standard_library_numpy_and_themselves_only(root: Path) -> None:
    allowed = (sys.stdlib_module_names - {"asyncio", "socket", "subprocess", "threading"}) | {"numpy"}
    for path in (root / "schedulers").rglob("*.py"):
        for _, name in imports_of(ast.parse(path.read_text())):
            ours = name.startswith("stepwell.schedulers.")
            assert ours or name.partition(".")[0] in allowed, f"{path.relative_to(root)} imports {name}"


def test_files_can_be_held_in_the_head(sources: list[Path], root: Path) -> None:
    others = [path for folder in ("tests", "benchmarks") for path in (root / folder).rglob("*.py")]
    lengths = {path.relative_to(root): len(path.read_text().splitlines()) for path in [*sources, *others]}
    assert not {path: length for path, length in lengths.items() if length > 400}
