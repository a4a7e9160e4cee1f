"""Every kind of level against the model of transformers cut to it, alone and among other levels."""

from __future__ import annotations

from typing import Any

import pytest

LEVELS: dict[str, dict[str, Any]] = {
    "depth-1": {"layers": 1},
    "depth-2": {"layers": 2},
    "ffn": {"ffn": 7},
    "heads": {"kv_groups": 1},
    "all": {"layers": 2, "ffn": 30, "kv_groups": 3},
    "full": {},
}
PER_LAYER: dict[str, dict[str, Any]] = {
    "ffn": {"ffn": [48, 5, 20]},
    "heads": {"kv_groups": [1, 4, 2]},
    "both": {"ffn": [9, 30, 48], "kv_groups": [4, 3, 1]},
    "no attention": {"kv_groups": [4, 0, 4]},
    "no ffn": {"ffn": [0, 48, 48]},
    "no last layer but its ffn": {"kv_groups": [4, 0, 0], "ffn": [48, 0, 48]},
}


@pytest.mark.parametrize("brand", ["bert", "roberta", "distilbert", "albert"])
def test_levels_are_the_model_cut_to_them(
    brand: str,
    make_encoder: Any,
    open_encoder: Any,
    cut_encoder: Any,
    subnet_of: Any,
    texts: Any,
    run_items: Any,
    reference_outputs: Any,
    assert_same: Any,
) -> None:
    reference, encoder = make_encoder(brand, "sequence").reference, open_encoder(brand, "sequence")
    batch = texts(*[5 + 3 * (index % 2) for index in range(len(LEVELS))])
    subnets = [subnet_of(encoder, **level) for level in LEVELS.values()]
    expected = [
        reference_outputs(cut_encoder(brand, reference, **level), ids)
        for level, ids in zip(LEVELS.values(), batch, strict=True)
    ]
    for packed_bytes in (0, 1 << 24):
        encoder.prepare_serving(packed_bytes)
        for ours, theirs in zip(run_items(encoder, batch, subnets), expected, strict=True):
            assert_same(ours, theirs)
    for ids, subnet, theirs in zip(batch, subnets, expected, strict=True):
        assert_same(run_items(encoder, [ids], [subnet])[0], theirs)


@pytest.mark.parametrize("name", PER_LAYER)
@pytest.mark.parametrize("brand", ["bert", "roberta"])
def test_layers_may_differ_and_sublayers_be_left_out(
    brand: str,
    name: str,
    make_encoder: Any,
    open_encoder: Any,
    cut_encoder: Any,
    subnet_of: Any,
    texts: Any,
    run_items: Any,
    reference_outputs: Any,
    assert_same: Any,
) -> None:
    reference, encoder = make_encoder(brand, "masked_lm").reference, open_encoder(brand, "masked_lm")
    small = cut_encoder(brand, reference, **PER_LAYER[name])
    batch = texts(4, 11, 4)
    subnets = [subnet_of(encoder, **PER_LAYER[name]), encoder.config.architecture.full, subnet_of(encoder, layers=1)]
    outputs = run_items(encoder, batch, subnets)
    assert_same(outputs[0], reference_outputs(small, batch[0]))
    assert_same(outputs[1], reference_outputs(reference, batch[1]))


def test_a_level_without_layers_gives_the_embeddings(
    make_encoder: Any, open_encoder: Any, subnet_of: Any, texts: Any, run_items: Any
) -> None:
    encoder = open_encoder("bert")
    (ids,) = texts(7)
    ours = run_items(encoder, [ids], [subnet_of(encoder, layers=0)])[0]["last_hidden_state"]
    assert (ours - make_encoder("bert").reference.embeddings(ids[None])[0]).abs().max() < 1e-5


def test_two_widths_are_measured_when_serving_is_prepared(open_encoder: Any) -> None:
    encoder = open_encoder("bert")
    assert encoder.prepare_serving(0, [48]).run_wide is None
    assert encoder.prepare_serving(0, [7, 48]).run_wide is not None
