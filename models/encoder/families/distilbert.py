"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT without token types, with other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.families.reading import common_fields, read_activation, read_head
from stepwell.models.encoder.family import Family, Names
from stepwell.models.fields import read_size

_SIZES = {
    "dim": ("hidden_size", 768),
    "n_heads": ("num_attention_heads", 12),
    "n_layers": ("num_hidden_layers", 6),
    "hidden_dim": ("intermediate_size", 3072),
}
"""What this family calls a size -> what BERT does, and its default."""


def read(document: Mapping[str, Any]) -> EncoderConfig:
    """The parsed content of ``config.json`` -> configuration. Raises ConfigError."""
    sizes = {theirs: read_size(document, ours, default) for ours, (theirs, default) in _SIZES.items()}
    activation = read_activation(document, "activation")
    return EncoderConfig(
        **common_fields({**document, **sizes, "layer_norm_eps": 1e-12}),
        activation=activation,
        **read_head(document, dense_activation="relu", masked_lm_activation=activation),
    )


FAMILY = Family(
    read,
    Names(
        prefix="distilbert.",
        layer=r"transformer\.layer\.(\d+)\.",
        layer_parts={
            "attention.q_lin": "attention.query",
            "attention.k_lin": "attention.key",
            "attention.v_lin": "attention.value",
            "attention.out_lin": "attention.out",
            "sa_layer_norm": "attention_norm",
            "ffn.lin1": "ffn.up",
            "ffn.lin2": "ffn.down",
            "output_layer_norm": "ffn_norm",
        },
        parts={
            "embeddings.word_embeddings": "embeddings.word",
            "embeddings.position_embeddings": "embeddings.position",
            "embeddings.LayerNorm": "embeddings.norm",
        },
        heads={
            "masked_lm": {
                "vocab_transform": "head.dense",
                "vocab_layer_norm": "head.norm",
                "vocab_projector": "head.out",
            },
            "sequence": {"pre_classifier": "head.dense", "classifier": "head.out"},
            "token": {"classifier": "head.out"},
        },
        spare=("embeddings.position_ids",),
    ),
)
