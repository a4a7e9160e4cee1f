"""ALBERT (Lan et al. 2020, arXiv 1909.11942): layers that share their weights, factorised embeddings.

A level of depth n runs the first n repetitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.families.bert import EMBEDDINGS
from stepwell.models.encoder.families.reading import common_fields, read_activation, read_head
from stepwell.models.encoder.family import Family, Names
from stepwell.models.fields import ConfigError, read_size

_DEFAULTS = {"hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16384}


def read(document: Mapping[str, Any]) -> EncoderConfig:
    """The parsed content of ``config.json`` -> configuration. Raises ConfigError."""
    fields = common_fields({**_DEFAULTS, **document})
    activation = read_activation(document, "hidden_act", "gelu_new")
    embedding_size = read_size(document, "embedding_size", 128)
    return EncoderConfig(
        **fields,
        activation=activation,
        type_vocab_size=read_size(document, "type_vocab_size", 2),
        embedding_size=embedding_size,
        layer_modules=_layer_modules(document, fields["num_layers"]),
        **read_head(document, "tanh", masked_lm_activation=activation, dense_size=embedding_size),
    )


def _layer_modules(document: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    if (inner := read_size(document, "inner_group_num", 1)) != 1:
        raise ConfigError(f"inner_group_num: only 1 is supported, got {inner}")
    groups = read_size(document, "num_hidden_groups", 1)
    if groups > num_layers:
        raise ConfigError(f"num_hidden_groups: at most num_hidden_layers {num_layers}, got {groups}")
    return tuple(layer * groups // num_layers for layer in range(num_layers))


FAMILY = Family(
    read,
    Names(
        prefix="albert.",
        layer=r"encoder\.albert_layer_groups\.(\d+)\.albert_layers\.0\.",
        layer_parts={
            "attention.query": "attention.query",
            "attention.key": "attention.key",
            "attention.value": "attention.value",
            "attention.dense": "attention.out",
            "attention.LayerNorm": "attention_norm",
            "ffn": "ffn.up",
            "ffn_output": "ffn.down",
            "full_layer_layer_norm": "ffn_norm",
        },
        parts={**EMBEDDINGS, "encoder.embedding_hidden_mapping_in": "embeddings.project"},
        heads={
            "masked_lm": {
                "predictions": "head.out",
                "predictions.decoder": "head.out",
                "predictions.dense": "head.dense",
                "predictions.LayerNorm": "head.norm",
            },
            "sequence": {"pooler": "head.dense", "classifier": "head.out"},
            "token": {"classifier": "head.out"},
        },
        spare=("embeddings.position_ids", "pooler.", "sop_classifier."),
    ),
)
