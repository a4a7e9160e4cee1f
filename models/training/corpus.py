"""The text a language model is trained and measured on: a folder of source and text files, split by file.

Without a folder the corpus is the running Python's standard library (source of all modules but tests and generated
tables) and its language reference as ``pydoc`` carries it. The split depends on nothing but each file's relative
path, so that adding files or changing the order moves no file from one side to the other.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

TEXT_SUFFIXES = (".py", ".txt", ".md", ".rst")

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"})
"""Installed packages, tests, and ``encodings`` (generated tables, all alike: they would flatter the held-out score)."""
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "NEWS")
"""What the build of the interpreter generated (it names the machine it was built on), and change logs."""
_TOPICS = "pydoc_data/topics.py"
_SALT = "stepwell-4:"
"""Part of the hash. Chosen once so that the language reference, one single file, is trained on."""


@dataclass(frozen=True)
class Document:
    """One piece of text."""

    path: str
    """The file it comes from, relative to the corpus, with forward slashes; the key of the split."""
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents never trained on. No file is on both sides."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]


def load_corpus(root: Path | None, held_out_share: float) -> Corpus:
    """Read every text file under ``root`` (None: the standard library) and split by file.

    ``held_out_share`` is the expected share of files held out, in (0, 1). Raises ValueError if a side stays empty.
    """
    documents = sorted(_read(root or stdlib_folder()), key=lambda document: (document.path, document.text))
    train = tuple(doc for doc in documents if not is_held_out(doc.path, held_out_share))
    held_out = tuple(doc for doc in documents if is_held_out(doc.path, held_out_share))
    if not train or not held_out:
        raise ValueError(
            f"sources: {len(train)} documents to train on and {len(held_out)} held out in {root or stdlib_folder()}; "
            f"both sides need some, add files ({', '.join(TEXT_SUFFIXES)}) or change held_out_share"
        )
    return Corpus(train, held_out)


def stdlib_folder() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def is_held_out(path: str, share: float) -> bool:
    """Whether the file with this relative path is held out: its hash, as a number in [0, 1), is below ``share``."""
    digest = hashlib.sha256(f"{_SALT}{path}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64 < share


def _read(root: Path) -> Iterator[Document]:
    for file in root.rglob("*"):
        path = PurePosixPath(file.relative_to(root).as_posix())
        if path.suffix not in TEXT_SUFFIXES or _skipped(path) or not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if str(path) == _TOPICS:
            yield from _topics(text)
        elif text.strip():
            yield Document(str(path), text)


def _skipped(path: PurePosixPath) -> bool:
    in_skipped = any(part in _SKIPPED_FOLDERS for part in path.parts[:-1])
    return in_skipped or any(part.startswith(_SKIPPED_PREFIXES) for part in path.parts)


def _topics(source: str) -> Iterator[Document]:
    """The chapters of the language reference, without those that another one contains whole.

    All carry the path of their one file: they quote each other, so they belong on one side of the split.
    """
    assignment = next(node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    texts = set(ast.literal_eval(assignment.value).values())
    for text in texts:
        if not any(text != other and text.strip() in other for other in texts):
            yield Document(_TOPICS, text)
