"""Texts of two segments: token types against transformers, in ragged batches that mix texts with and without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from stepwell.models.encoder.batch import TextBatch
from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.ladder import SubNetwork
from stepwell.models.one_shot import Item

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("albert", {}),
    "bert": ("bert", {}),
    "bert-four-types": ("bert", {"type_vocab_size": 4}),
    "deberta": ("deberta", {"type_vocab_size": 2}),
    "deberta-positions": ("deberta", {"type_vocab_size": 2, "position_biased_input": True}),
    "deberta-v2": ("deberta-v2", {"type_vocab_size": 2, "conv_kernel_size": 3}),
    "deberta-v2-narrow": ("deberta-v2", {"type_vocab_size": 2, "embedding_size": 20}),
    "roberta": ("roberta", {"type_vocab_size": 2}),
}
SPLITS = ((4, 5), (1, 0), (2, 31), (0, 9), (9, 0), (3, 6))
"""Tokens of the first and of the second segment."""
UNTYPED = 4
"""Place of a text that says nothing of types."""


def typed(splits: tuple[tuple[int, int], ...], last: int) -> list[Tensor]:
    """Types of texts: 0 in the first segment, ``last`` in the second."""
    return [torch.tensor([0] * first + [last] * second) for first, second in splits]


@torch.no_grad()
def ask(model: PreTrainedModel, ids: Tensor, types: Tensor) -> dict[str, Tensor]:
    out = model(ids[None], token_type_ids=types[None], output_hidden_states=True)
    hidden = out.hidden_states[-1][0]
    named = {"last_hidden_state": hidden, "embedding": hidden.mean(0)}
    return {**named, "logits": out.logits[0]} if "logits" in out else named


@pytest.mark.parametrize("head", ["none", "sequence"])
@pytest.mark.parametrize("name", MODELS)
def test_pairs_are_what_transformers_makes_of_them(
    name: str, head: str, make_encoder: Any, open_encoder: Any, texts: Any, assert_same: Any
) -> None:
    brand, fields = MODELS[name]
    reference, encoder = (make(brand, head, **fields) for make in (make_encoder, open_encoder))
    reference = reference.reference
    ids = texts(*(first + second for first, second in SPLITS))
    types = typed(SPLITS, encoder.config.type_vocab_size - 1)
    expected = [ask(reference, *pair) for pair in zip(ids, types, strict=True)]
    untyped = ask(reference, ids[0], torch.zeros_like(ids[0]))
    assert (untyped["embedding"] - expected[0]["embedding"]).abs().max() > 1e-2, "types show"
    full = encoder.config.architecture.full
    given_types: list[Tensor | None] = [None if at == UNTYPED else t for at, t in enumerate(types)]
    items = [Item(i, full, token_types=t) for i, t in zip(ids, given_types, strict=True)]
    for packed_bytes in (0, 1 << 24):
        encoder.prepare_serving(packed_bytes)
        together = encoder.run(items, list(encoder.config.outputs))
        for ours, theirs in zip(together, expected, strict=True):
            assert_same(ours.tensors, theirs)


def test_a_cut_level_sees_types_too(
    make_encoder: Any, open_encoder: Any, cut_encoder: Any, subnet_of: Any, texts: Any, assert_same: Any
) -> None:
    encoder = open_encoder("bert")
    cut = cut_encoder("bert", make_encoder("bert").reference, layers=2, ffn=11)
    level, full = subnet_of(encoder, layers=2, ffn=11), encoder.config.architecture.full
    ids, types = texts(9, 6, 9), typed(((4, 5), (3, 3), (8, 1)), 1)
    items = [Item(i, s, token_types=t) for i, s, t in zip(ids, (full, level, level), types, strict=True)]
    for index in (1, 2):
        ours = encoder.run(items, list(encoder.config.outputs))[index]
        assert_same(ours.tensors, ask(cut, ids[index], types[index]))


def test_a_model_without_types_takes_no_notice(open_encoder: Any, texts: Any) -> None:
    encoder = open_encoder("distilbert")
    (ids,), full = texts(6), encoder.config.architecture.full
    assert encoder.config.type_vocab_size == 0
    plain, with_types = encoder.run([Item(ids, full), Item(ids, full, token_types=torch.ones_like(ids))], ["embedding"])
    torch.testing.assert_close(plain.tensors["embedding"], with_types.tensors["embedding"])


@given(
    texts=st.lists(st.tuples(st.integers(1, 12), st.none() | st.integers(0, 3)), min_size=1, max_size=8),
    padded=st.booleans(),
)
def test_every_token_keeps_its_type(texts: list[tuple[int, int | None]], padded: bool) -> None:
    """Each a length and the type of all of its tokens but the first; None = the text says none."""
    config = EncoderConfig.from_hf({"model_type": "bert", "vocab_size": 9})
    subnet: SubNetwork = config.architecture.full
    given_types = [None if t is None else torch.tensor([0] + [t] * (n - 1)) for n, t in texts]
    items = [Item(torch.zeros(n).long(), subnet, None, t) for (n, _), t in zip(texts, given_types, strict=True)]
    batch = TextBatch.pack(items, padded)
    if all(t is None for t in given_types):
        assert batch.token_types is None
        return
    assert batch.token_types is not None
    assert batch.token_types.shape == batch.token_ids.shape
    assert not batch.token_types[batch.cu_seqlens[-1] :].any()
    for place, rows in zip(batch.order, batch.rows, strict=True):
        length, kind = texts[place]
        assert batch.token_types[rows].tolist() == [0] + [kind or 0] * (length - 1)
