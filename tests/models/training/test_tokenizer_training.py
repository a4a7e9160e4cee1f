"""The byte-level tokenizer that training makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.training.bpe import END_OF_TEXT, END_OF_TEXT_ID, train_tokenizer

TOKENIZER = train_tokenizer(["def f(x):\n    return x + 1\n" * 5, "class A:\n    pass\n"], 300)


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_end_of_text_is_one_token_and_bytes_are_in_the_vocabulary() -> None:
    assert TOKENIZER.token_to_id(END_OF_TEXT) == END_OF_TEXT_ID
    assert 257 <= TOKENIZER.get_vocab_size() <= 300
    assert TOKENIZER.encode("    return").ids != TOKENIZER.encode("return").ids
