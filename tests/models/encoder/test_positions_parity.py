"""DeBERTa and ModernBERT against transformers: every way their attention may see positions, on ragged batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepwell.models.encoder import load_encoder

V1: dict[str, dict[str, Any]] = {
    "v1": {},
    "v1-positions": {"position_biased_input": True, "type_vocab_size": 2},
    "v1-c2p": {"pos_att_type": ["c2p"]},
    "v1-p2c": {"pos_att_type": "p2c"},
    "v1-content": {"pos_att_type": []},
    "v1-absolute": {"relative_attention": False, "position_biased_input": True},
    "v1-near": {"max_relative_positions": 6},
    "v1-narrow-embeddings": {"embedding_size": 20},
}
V2: dict[str, dict[str, Any]] = {
    "v3": {},
    "v2-own-projections": {"share_att_key": False, "norm_rel_ebd": "none"},
    "v2-c2p": {"pos_att_type": ["c2p"]},
    "v2-p2c": {"pos_att_type": ["p2c"], "share_att_key": False},
    "v2-content": {"pos_att_type": []},
    "v2-absolute": {"relative_attention": False, "position_biased_input": True, "norm_rel_ebd": "none"},
    "v2-distances": {"position_buckets": -1},
    "v2-near": {"position_buckets": -1, "max_relative_positions": 5},
    "v2-odd-buckets": {"position_buckets": 7, "max_relative_positions": 30},
    "v2-convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "v2-wide-convolution": {"conv_kernel_size": 5, "conv_groups": 4},
    "v2-narrow-embeddings": {"embedding_size": 20, "type_vocab_size": 2},
}
MODERN: dict[str, dict[str, Any]] = {
    "modern": {},
    "modern-biases": {
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "decoder_bias": False,
        "classifier_pooling": "mean",
        "hidden_activation": "silu",
        "norm_eps": 0.1,
    },
    "modern-layer-types": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "modern-thetas": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        }
    },
    "modern-next-neighbour": {"local_attention": 2},
    "modern-untied": {"tie_word_embeddings": False},
}
TWO_LAYERS = {"num_hidden_layers": 2}
"""All layers of DeBERTa attend alike, but for the convolution beside the first; of ModernBERT a third is needed."""
MODELS = {
    **{name: ("deberta", {**TWO_LAYERS, **fields}) for name, fields in V1.items()},
    **{name: ("deberta-v2", {**TWO_LAYERS, **fields}) for name, fields in V2.items()},
    **{name: ("modernbert", fields) for name, fields in MODERN.items()},
}
LENGTHS = (3, 9, 40, 9, 1)
"""Two of a length, which attend in one call; one beyond every distance, bucket and window."""
ALONE = 2
"""Place of the text that is also run in no batch."""


def heads_of(name: str) -> list[str]:
    return ["masked_lm", "sequence", "token"] if name in ("v1", "v3", "modern", "modern-biases") else ["masked_lm"]


@pytest.mark.parametrize(("name", "head"), [(name, head) for name in MODELS for head in heads_of(name)])
def test_every_variant_is_the_model_of_transformers(
    name: str,
    head: str,
    make_encoder: Any,
    open_encoder: Any,
    texts: Any,
    run_items: Any,
    reference_outputs: Any,
    assert_same: Any,
) -> None:
    brand, fields = MODELS[name]
    reference = make_encoder(brand, head, **fields).reference
    encoder = open_encoder(brand, head, **fields)
    batch = texts(*LENGTHS)
    expected = [reference_outputs(reference, ids) for ids in batch]
    # Alone first: what is kept of distances must then serve shorter texts too.
    assert_same(run_items(encoder, [batch[ALONE]])[0], expected[ALONE])
    for ours, theirs in zip(run_items(encoder, batch), expected, strict=True):
        assert_same(ours, theirs)
    encoder.prepare_serving(1 << 24)
    for ours, theirs in zip(run_items(encoder, batch), expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("brand", ["deberta", "deberta-v2", "modernbert"])
def test_long_texts(
    brand: str,
    make_encoder: Any,
    open_encoder: Any,
    texts: Any,
    run_items: Any,
    reference_outputs: Any,
    assert_same: Any,
) -> None:
    """Beyond the distances, and beyond the queries that attend at once."""
    fields = {"max_position_embeddings": 300, "max_relative_positions": 100}
    reference = make_encoder(brand, **fields).reference
    encoder = open_encoder(brand, **fields)
    batch = texts(70, 290, 130, 70, 5)
    expected = [reference_outputs(reference, ids) for ids in batch]
    # Alone first and from short to long: what is kept of distances must grow, and then serve short texts too.
    for index in sorted(range(len(batch)), key=lambda i: len(batch[i])):
        assert_same(run_items(encoder, [batch[index]])[0], expected[index])
    for ours, theirs in zip(run_items(encoder, batch), expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("brand", ["deberta", "deberta-v2"])
def test_the_head_that_deberta_was_trained_with(
    brand: str,
    make_encoder: Any,
    open_encoder: Any,
    texts: Any,
    run_items: Any,
    reference_outputs: Any,
    assert_same: Any,
) -> None:
    reference = make_encoder(brand, "masked_lm", legacy=False).reference
    encoder = open_encoder(brand, "masked_lm", legacy=False)
    batch = texts(6, 11)
    for ids, ours in zip(batch, run_items(encoder, batch), strict=True):
        assert_same(ours, reference_outputs(reference, ids))


@pytest.mark.parametrize("brand", ["deberta", "deberta-v2", "modernbert"])
def test_bfloat16_is_near_the_model_of_transformers(
    brand: str, make_encoder: Any, texts: Any, run_items: Any, reference_outputs: Any
) -> None:
    checkpoint = make_encoder(brand, "token")
    encoder = load_encoder(checkpoint.path, dtype=torch.bfloat16).prepare_serving(1 << 24)
    batch = texts(5, 9, 30)
    for ids, ours in zip(batch, run_items(encoder, batch), strict=True):
        theirs = reference_outputs(checkpoint.reference, ids)["last_hidden_state"]
        error = (ours["last_hidden_state"] - theirs).norm() / theirs.norm()
        assert error < 0.05
