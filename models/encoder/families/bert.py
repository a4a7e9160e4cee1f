"""BERT (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.families.reading import common_fields, read_activation, read_head
from stepwell.models.encoder.family import Family, Names
from stepwell.models.fields import read_size

EMBEDDINGS: Mapping[str, str] = {
    "embeddings.word_embeddings": "embeddings.word",
    "embeddings.position_embeddings": "embeddings.position",
    "embeddings.token_type_embeddings": "embeddings.token_type",
    "embeddings.LayerNorm": "embeddings.norm",
}
LAYER: Mapping[str, str] = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn.up",
    "output.dense": "ffn.down",
    "output.LayerNorm": "ffn_norm",
}


def read(document: Mapping[str, Any]) -> EncoderConfig:
    """The parsed content of ``config.json`` -> configuration. Raises ConfigError."""
    activation = read_activation(document, "hidden_act")
    return EncoderConfig(
        **common_fields(document),
        activation=activation,
        type_vocab_size=read_size(document, "type_vocab_size", 2),
        **read_head(document, dense_activation="tanh", masked_lm_activation=activation),
    )


FAMILY = Family(
    read,
    Names(
        prefix="bert.",
        layer=r"encoder\.layer\.(\d+)\.",
        layer_parts=LAYER,
        parts=EMBEDDINGS,
        heads={
            "masked_lm": {
                "cls.predictions": "head.out",
                "cls.predictions.decoder": "head.out",
                "cls.predictions.transform.dense": "head.dense",
                "cls.predictions.transform.LayerNorm": "head.norm",
            },
            "sequence": {"pooler.dense": "head.dense", "classifier": "head.out"},
            "token": {"classifier": "head.out"},
        },
        spare=("embeddings.position_ids", "pooler.", "cls.seq_relationship."),
    ),
)
