"""The split by file and what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.training.corpus import Document, is_held_out, load_corpus


def test_no_file_is_on_both_sides(sources: Path) -> None:
    corpus = load_corpus(sources, 0.2)
    train, held_out = ({document.path for document in side} for side in (corpus.train, corpus.held_out))
    assert not train & held_out
    assert train | held_out == {file.name for file in sources.iterdir()}


def test_a_new_file_moves_no_other(tmp_path: Path, sources: Path) -> None:
    before = load_corpus(sources, 0.2)
    for file in sources.iterdir():
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "added.py").write_text("added = 1\n", encoding="utf-8")
    after = load_corpus(tmp_path, 0.2)
    added = Document("added.py", "added = 1\n")
    assert set(after.train) - {added} == set(before.train)
    assert set(after.held_out) - {added} == set(before.held_out)


@given(st.lists(st.text(min_size=1), min_size=400, max_size=400, unique=True))
def test_about_the_asked_share_is_held_out(paths: list[str]) -> None:
    assert 0.05 < sum(is_held_out(path, 0.2) for path in paths) / len(paths) < 0.4


def test_tests_packages_and_generated_files_are_left_out(tmp_path: Path) -> None:
    kept = [f"kept_{number}.py" for number in range(40)]
    dropped = ["test/a.py", "json/tests/b.py", "site-packages/c.py", "encodings/d.py", "_sysconfigdata_x.py", "e.bin"]
    for name in kept + dropped:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
    corpus = load_corpus(tmp_path, 0.3)
    assert sorted(document.path for document in corpus.train + corpus.held_out) == sorted(kept)


def test_topics_are_documents_of_their_own_without_quoted_ones(tmp_path: Path, sources: Path) -> None:
    (tmp_path / "pydoc_data").mkdir()
    topics = {"long": "Names refer to objects.", "part": "refer to objects", "other": "Other."}
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n", encoding="utf-8")
    for file in sources.iterdir():
        (tmp_path / file.name).write_text("x = 1\n", encoding="utf-8")
    corpus = load_corpus(tmp_path, 0.2)
    found = {document.text for document in corpus.train + corpus.held_out if "topics" in document.path}
    assert found == {"Names refer to objects.", "Other."}


def test_the_standard_library_has_both_sides_and_its_reference_is_trained_on() -> None:
    corpus = load_corpus(None, 0.05)
    assert not {document.path for document in corpus.train} & {document.path for document in corpus.held_out}
    assert len(corpus.held_out) >= 10
    assert sum(document.path == "pydoc_data/topics.py" for document in corpus.train) > 50


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sources: 0 documents"):
        load_corpus(tmp_path, 0.2)
