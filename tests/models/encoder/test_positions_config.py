"""``config.json`` of DeBERTa and ModernBERT: what is read, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from stepwell.models.encoder import EncoderConfig
from stepwell.models.encoder.families import ENCODER_TYPES
from stepwell.models.encoder.positions import Convolution, RelativePositions, RotaryLayer
from stepwell.models.fields import ConfigError
from stepwell.models.registry import PREDICTORS

SMALL = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
V1 = {"model_type": "deberta", "relative_attention": True, "pos_att_type": "c2p|p2c", **SMALL}
V3 = {
    **V1,
    "model_type": "deberta-v2",
    "max_relative_positions": -1,
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
MODERN = {"model_type": "modernbert", **SMALL}


def read(document: dict[str, Any], **fields: Any) -> EncoderConfig:
    return EncoderConfig.from_hf({**document, **fields})


def test_the_fields_of_the_third_version() -> None:
    config = read(V3)
    assert config.relative == RelativePositions(
        num_terms=3,
        span=256,
        num_buckets=256,
        max_distance=512,
        content_to_position=True,
        position_to_content=True,
        shares_projections=True,
        table_norm=True,
    )
    assert (config.position_table, config.type_vocab_size, config.norm_eps) == (False, 0, 1e-7)


def test_the_first_version_has_every_distance_and_the_xlarge_a_convolution() -> None:
    first, xlarge = read(V1).relative, read(V3, conv_kernel_size=3, conv_act="gelu").relative
    assert first is not None
    assert xlarge is not None
    assert (first.span, first.num_buckets, first.interleaved) == (512, 0, True)
    assert xlarge.convolution == Convolution(3, 1, "gelu")


def test_layers_of_modernbert_alternate() -> None:
    far, near = RotaryLayer(160_000.0, None), RotaryLayer(10_000.0, 64)
    assert read(MODERN).rotary == (far, near, near, far)
    assert read(MODERN, global_attn_every_n_layers=2).rotary == (far, near, far, near)
    assert (
        read(MODERN, layer_types=["sliding_attention"] * 4, local_rope_theta=7, local_attention=10).rotary
        == (RotaryLayer(7.0, 5),) * 4
    )


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("deberta", {"type_vocab_size": 0}),
    ("deberta", {"type_vocab_size": 0, "pos_att_type": ["c2p"]}),
    ("deberta-v2", {}),
    ("deberta-v2", {"share_att_key": False}),
    ("deberta-v2", {"conv_kernel_size": 3, "conv_groups": 4}),
    ("modernbert", {}),
]


@pytest.mark.parametrize(("brand", "fields"), VARIANTS)
def test_parameters_of_units_are_the_matrices_of_the_layers(
    brand: str, fields: dict[str, Any], open_encoder: Any
) -> None:
    encoder = open_encoder(brand, **fields)
    head, channel, always = encoder.config.unit_parameters
    units = encoder.config.architecture
    stated = units.num_layers * (units.num_kv_groups * head + units.ffn_channels * channel) + always
    matrices = [weight.numel() for weight in encoder.layers.parameters() if weight.dim() > 1]
    assert stated == sum(matrices)


def test_every_family_can_be_served() -> None:
    assert {kind for kind, package in PREDICTORS.items() if package == "stepwell.models.encoder"} == set(ENCODER_TYPES)


@given(
    longest=st.integers(1, 700),
    near=st.integers(1, 40),
    odd=st.integers(0, 1),
    beyond=st.integers(2, 600),
)
def test_buckets_are_those_of_transformers(longest: int, near: int, odd: int, beyond: int) -> None:
    buckets, farthest = 2 * near + odd, near + 1 + beyond
    spec = RelativePositions(span=buckets, num_buckets=buckets, max_distance=farthest)
    x = torch.zeros(longest, 1)
    theirs = (build_relative_position(x, x, buckets, farthest)[0] + buckets).clamp(0, 2 * buckets - 1)
    rows = spec.table_rows(longest)
    assert torch.equal(rows[longest - 1 :], theirs[:, 0])
    assert torch.equal(rows[:longest].flip(0), theirs[0])


@pytest.mark.parametrize(
    ("document", "fields", "message"),
    [
        (V1, {"pos_att_type": "p2p"}, r"pos_att_type: expected some of c2p, p2c, got \['p2p'\]"),
        (V1, {"pos_att_type": ["c2p", "c2p"]}, r"pos_att_type: expected some of"),
        (V1, {"talking_head": True}, r"talking_head: true is not supported"),
        (V1, {"pooler_hidden_size": 9}, r"pooler_hidden_size: only hidden_size, 8, is supported, got 9"),
        (V1, {"legacy": False, "embedding_size": 4}, r"legacy: false needs embedding_size equal to hidden_size 8"),
        (V3, {"attention_head_size": 8}, r"attention_head_size: only hidden_size / num_attention_heads, 4"),
        (V3, {"position_buckets": 1}, r"position_buckets: expected 2 or more and less than twice"),
        (V3, {"max_relative_positions": 100}, r"position_buckets: expected 2 or more .* distance 99, got 256"),
        (V3, {"norm_rel_ebd": "rms"}, r"norm_rel_ebd: expected none or layer_norm, got 'rms'"),
        (V3, {"conv_kernel_size": 4}, r"conv_kernel_size: expected an odd number"),
        (V3, {"conv_kernel_size": 3, "conv_groups": 3}, r"conv_groups: 3 does not divide hidden_size 8"),
        (V3, {"conv_kernel_size": 3, "conv_act": "mish"}, r"conv_act: 'mish' is not supported"),
        (MODERN, {"num_attention_heads": 8}, r"num_attention_heads: rotary embedding needs heads of even width"),
        (MODERN, {"layer_types": ["full_attention"]}, r"layer_types: expected 4 of full_attention, sliding_att"),
        (MODERN, {"layer_types": ["full"] * 4}, r"layer_types: expected 4 of full_attention, sliding_attention"),
        (MODERN, {"global_attn_every_n_layers": 0}, r"global_attn_every_n_layers: expected a whole number"),
        (MODERN, {"global_rope_theta": -1}, r"global_rope_theta .*: expected a number > 0, got -1"),
        (MODERN, {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, r"rope_parameters: only rope_type"),
        (
            MODERN,
            {"architectures": ["ModernBertForTokenClassification"], "classifier_pooling": "max"},
            r"classifier_pooling: expected cls or mean, got 'max'",
        ),
    ],
)
def test_nonsense_is_refused(document: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(document, **fields)


FIELDS = [
    *(
        (V1, name)
        for name in ("pos_att_type", "relative_attention", "max_relative_positions", "talking_head", "legacy")
    ),
    *((V3, name) for name in ("position_buckets", "norm_rel_ebd", "conv_kernel_size", "share_att_key")),
    *((MODERN, name) for name in ("layer_types", "rope_parameters", "rope_scaling", "local_attention", "norm_eps")),
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("full_attention")
KEYS = st.sampled_from(["full_attention", "rope_type", "rope_theta", "type"])
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=2))


@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_of_a_field_is_read_or_refused_by_its_name(field: tuple[dict[str, Any], str], value: Any) -> None:
    document, name = field
    try:
        read(document, **{name: value})
    except ConfigError as error:
        assert name in str(error)  # noqa: PT017
