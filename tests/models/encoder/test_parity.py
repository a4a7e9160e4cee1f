"""Encoders against transformers: checkpoints it saved, opened by our loader, every head, on ragged batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepwell.models.kernels.linear import can_pack

BRANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("albert", {}),
    "albert-groups": ("albert", {"num_hidden_groups": 2, "hidden_act": "relu"}),
    "bert": ("bert", {}),
    "bert-tanh-gelu": ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 0.1}),
    "bert-untied": ("bert", {"tie_word_embeddings": False}),
    "camembert": ("camembert", {}),
    "distilbert": ("distilbert", {}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "roberta-padding": ("roberta", {"pad_token_id": 7}),
    "xlm-roberta": ("xlm-roberta", {}),
}
LENGTHS = (3, 9, 17, 9, 1, 31, 9)
PLENTY = 1 << 24


@pytest.mark.parametrize("head", ["none", "masked_lm", "sequence", "token"])
@pytest.mark.parametrize("name", BRANDS)
def test_every_family_and_head_is_the_model_of_transformers(
    name: str,
    head: str,
    make_encoder: Any,
    open_encoder: Any,
    texts: Any,
    run_items: Any,
    reference_outputs: Any,
    assert_same: Any,
) -> None:
    brand, fields = BRANDS[name]
    reference = make_encoder(brand, head, **fields).reference
    encoder = open_encoder(brand, head, **fields)
    batch = texts(*LENGTHS)
    expected = [reference_outputs(reference, ids) for ids in batch]
    for ours, theirs in zip(run_items(encoder, batch), expected, strict=True):
        assert_same(ours, theirs)
    for ids, theirs in zip(batch, expected, strict=True):
        assert_same(run_items(encoder, [ids])[0], theirs)
    encoder.prepare_serving(PLENTY)
    for ours, theirs in zip(run_items(encoder, batch), expected, strict=True):
        assert_same(ours, theirs)
    assert (encoder.linear.packed_bytes > 0) == can_pack(torch.float32)


@pytest.mark.parametrize("brand", ["bert", "roberta", "distilbert", "albert"])
def test_outputs_have_the_shapes_that_the_configuration_says(
    brand: str, open_encoder: Any, texts: Any, run_items: Any
) -> None:
    for head in ("none", "masked_lm", "sequence", "token"):
        encoder = open_encoder(brand, head)
        outputs = run_items(encoder, texts(6))[0]
        assert outputs.keys() == encoder.config.outputs.keys()
        for name, shape in encoder.config.outputs.items():
            assert tuple(outputs[name].shape) == tuple(6 if size == -1 else size for size in shape)
            assert outputs[name].dtype == torch.float32


def test_only_the_wanted_outputs_are_given(open_encoder: Any, texts: Any) -> None:
    from stepwell.models.one_shot import Item

    encoder = open_encoder("bert", "sequence")
    items = [Item(ids, encoder.config.architecture.full) for ids in texts(4, 5)]
    for wanted in (["logits"], ["embedding"], ["last_hidden_state", "logits"]):
        assert [sorted(out.tensors) for out in encoder.run(items, wanted)] == [sorted(wanted)] * 2


def test_bfloat16_is_near_the_model_of_transformers(
    make_encoder: Any, open_encoder: Any, texts: Any, run_items: Any, reference_outputs: Any, assert_same: Any
) -> None:
    reference = make_encoder("bert", "token", dtype=torch.bfloat16).reference
    encoder = open_encoder("bert", "token", dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16
    for prepared in (encoder, encoder.prepare_serving(PLENTY)):
        for ids, ours in zip(texts(5, 9, 9), run_items(prepared, texts(5, 9, 9)), strict=True):
            assert_same(ours, reference_outputs(reference, ids), atol=0.1)


def test_a_text_with_padding_among_its_tokens_has_the_positions_of_roberta(
    make_encoder: Any, open_encoder: Any, run_items: Any, reference_outputs: Any, assert_same: Any
) -> None:
    reference, encoder = make_encoder("roberta").reference, open_encoder("roberta")
    batch = [torch.tensor([4, 1, 1, 9, 8, 1]), torch.tensor([1, 1]), torch.tensor([1, 5, 6])]
    for ids, ours in zip(batch, run_items(encoder, batch), strict=True):
        assert_same(ours, reference_outputs(reference, ids))
