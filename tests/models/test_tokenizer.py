"""Tokenizer files, and streams of text: joined they are the whole text, and nothing shown is ever taken back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from stepwell.models.tokenizer import REPLACEMENT, WINDOW_TOKENS, TextStream, Tokenizer, TokenizerError

TEXT = "the cat, the hat: naïve façade, Grüße; 你好你们你好世界; 🙂🙃🎉 the end. данные и дела. \ufffd ok\n" * 3
UNALIGNED = [b"\xa0\xe4\xbd", b"\x98\x80\xf0\x9f", b"\x80a", b"b\xf0", b"\xff\xff\xff", b"\xe4\xbd\xa0\xe4", b"abcd"]


def trained() -> Tokenizer:
    """A byte-level BPE of 320 tokens, one of them special."""
    backend = tokenizers.Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=320, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    return Tokenizer(backend)


def unaligned() -> Tokenizer:
    """All single bytes, and tokens that begin and end in the middle of characters."""
    spelling = byte_spelling()
    tokens = [*spelling, *("".join(spelling[byte] for byte in token) for token in UNALIGNED)]
    backend = tokenizers.Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def byte_spelling() -> list[str]:
    """How byte-level BPE spells byte 0, 1, ...: printable ones as themselves, others from U+0100 on (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_fallback() -> Tokenizer:
    """As Llama 2: words begin with U+2581, unknown characters are spelled as byte tokens."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"abcdehlo,."] + ["▁he", "llo", "▁a"]
    backend = tokenizers.Tokenizer(
        BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


TRAINED, UNALIGNED_BYTES, BYTE_FALLBACK = trained(), unaligned(), byte_fallback()
BYTE_LEVEL = pytest.mark.parametrize("tokenizer", [TRAINED, UNALIGNED_BYTES], ids=["trained", "unaligned"])


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first, and whether there is one."""
    found = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return (text[: min(found)[1]], True) if found else (text, False)


def overlap(text: str, stop: str) -> int:
    return max(n for n in range(len(stop)) if text.endswith(stop[:n]))


@st.composite
def token_ids_and_stops(draw: st.DrawFn, tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
    """Tokens, some repeated over and over, and stop strings: some from the text itself, some nearly."""
    token = st.integers(0, tokenizer.vocab_size + 2) | st.sampled_from(list("🙂你a".encode()))
    runs = st.tuples(st.lists(token, max_size=4), st.integers(1, 30)).map(lambda run: run[0] * run[1])
    token_ids = [*chain.from_iterable(draw(st.lists(st.lists(token, max_size=20) | runs, max_size=6)))]
    text = tokenizer.decode(token_ids)
    stops = draw(st.lists(st.text("ab the\ufffd你", min_size=1, max_size=4), max_size=2))
    if text and draw(st.booleans()):
        start = draw(st.integers(0, len(text) - 1))
        stops.append(text[start : start + draw(st.integers(1, 5))] + draw(st.sampled_from(["", "", "x"])))
    return token_ids, stops


@BYTE_LEVEL
@given(data=st.data())
def test_pieces_join_to_the_text_before_the_stop_string(tokenizer: Tokenizer, data: st.DataObject) -> None:
    token_ids, stop = data.draw(token_ids_and_stops(tokenizer))
    wanted, stops = cut_at_stop(tokenizer.decode(token_ids), stop)
    stream = TextStream(tokenizer, stop)
    shown = ""
    for token_id in token_ids:
        shown += stream.push(token_id)
        assert wanted.startswith(shown)
    shown += stream.finish()
    assert shown == wanted
    assert stream.stopped == stops
    assert stream.push(0) == "" or not stops


@BYTE_LEVEL
@given(data=st.data())
def test_holds_back_no_more_than_it_must(tokenizer: Tokenizer, data: st.DataObject) -> None:
    token_ids, stop = data.draw(token_ids_and_stops(tokenizer))
    stream = TextStream(tokenizer, stop)
    shown = ""
    for end, token_id in enumerate(token_ids, 1):
        shown += stream.push(token_id)
        text, _ = cut_at_stop(tokenizer.decode(token_ids[:end]), stop)
        if stream.stopped:
            break
        whole = text.rstrip(REPLACEMENT)
        assert len(shown) >= len(whole) - max((overlap(whole, s) for s in stop), default=0)
        assert len(text) - len(whole) < 40 or len(shown) > len(whole)  # bytes that are no character come out too


@BYTE_LEVEL
def test_work_per_token_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda token_ids: lengths.append(len(token_ids)) or decode(token_ids))
    for pattern in [*([token_id] for token_id in range(tokenizer.vocab_size)), [0xF0, 0x9F, 0x98], [0xE4, 0xBD]]:
        token_ids = pattern * 3 * WINDOW_TOKENS
        stream = TextStream(tokenizer, ["<never>"])
        assert "".join(stream.push(token_id) for token_id in token_ids) + stream.finish() == decode(token_ids)
    assert max(lengths) <= WINDOW_TOKENS


@given(
    st.text("aehllo ,.é你🙂", max_size=80) | st.text("é你🙂", min_size=20, max_size=40),
    st.sampled_from(["", "lo", "你🙂", " a"]),
)
def test_byte_fallback_and_word_marks(text: str, stop: str) -> None:
    token_ids = BYTE_FALLBACK.encode(text)
    assert BYTE_FALLBACK.decode(token_ids) == text
    stream = TextStream(BYTE_FALLBACK, [stop] if stop else [])
    pieces = [stream.push(token_id) for token_id in token_ids] + [stream.finish()]
    assert "".join(pieces) == cut_at_stop(text, [stop] if stop else [])[0]


@given(st.lists(st.integers(0, 255), max_size=300))
def test_byte_fallback_survives_any_bytes(token_ids: list[int]) -> None:
    stream = TextStream(BYTE_FALLBACK)
    shown = "".join(stream.push(token_id) for token_id in token_ids) + stream.finish()
    assert len(shown) <= len(token_ids)
    assert len(shown) >= len(BYTE_FALLBACK.decode(token_ids)) // 4


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    stream = TextStream(UNALIGNED_BYTES)
    assert [stream.push(byte) for byte in "a🙂b".encode()] == ["a", "", "", "", "🙂", "b"]
    assert stream.push(0xE4) == ""
    assert stream.finish() == REPLACEMENT


def test_the_stop_string_that_is_complete_first_counts() -> None:
    stream = TextStream(UNALIGNED_BYTES, ["abcd", "bc"])
    assert [stream.push(byte) for byte in b"xab"] == ["x", "", ""]
    assert stream.push(ord("c")) == "a"
    assert stream.stopped
    assert stream.finish() == ""
    at_once = TextStream(UNALIGNED_BYTES, ["abcd", "bc"])
    assert at_once.push(256 + UNALIGNED.index(b"abcd")) == "a"


def test_what_looked_like_a_stop_string_is_shown_once_it_is_none() -> None:
    stream = TextStream(UNALIGNED_BYTES, ["aab"])
    assert [stream.push(byte) for byte in b"aaac"] == ["", "", "a", "aac"]
    assert stream.push(ord("a")) == ""
    assert stream.finish() == "a"
    assert not stream.stopped


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="stop: must not contain an empty string"):
        TextStream(TRAINED, ["x", ""])


def test_special_tokens_are_not_shown() -> None:
    end = TRAINED.encode("<end>")
    assert len(end) == 1
    assert TRAINED.decode([*TRAINED.encode("the"), *end]) == "the"
    assert not TRAINED.shows(end[0])
    assert not TRAINED.shows(TRAINED.vocab_size)


def test_file_round_trip_and_post_processor(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    backend = TRAINED._backend
    added = tokenizers.Tokenizer.from_str(backend.to_str())
    added.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    added.enable_truncation(2)
    added.enable_padding(length=50)
    added.save(str(path))
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.vocab_size == 320
    assert tokenizer.encode("the cat, the hat") == [0, *TRAINED.encode("the cat, the hat")]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "EOF while parsing a value at line 1 column 0"),
        (b'{"model": ', "EOF while parsing"),
        (b"\xff\xfe", "not readable"),
        (json.dumps({"version": "1.0", "model": {"type": "BPE"}}).encode(), "Missing vocab"),
    ],
)
def test_corrupted_files_say_what_is_wrong(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=problem) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not found; put"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="not readable"):
        Tokenizer.from_file(tmp_path)
