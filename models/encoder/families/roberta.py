"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) and its kin: BERT with other positions and heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.families.bert import EMBEDDINGS, LAYER
from stepwell.models.encoder.families.reading import common_fields, read_activation, read_head
from stepwell.models.encoder.family import Family, Names
from stepwell.models.fields import ConfigError, read_size


def read(document: Mapping[str, Any]) -> EncoderConfig:
    """The parsed content of ``config.json`` -> configuration. Raises ConfigError."""
    config = EncoderConfig(
        **common_fields({**document, "pad_token_id": read_size(document, "pad_token_id", 1, least=0)}),
        activation=read_activation(document, "hidden_act"),
        type_vocab_size=read_size(document, "type_vocab_size", 2),
        positions_after_padding=True,
        **read_head(document, dense_activation="tanh"),
    )
    if config.max_tokens < 1:
        raise ConfigError(
            f"max_position_embeddings: {config.max_positions} leave no position above pad_token_id "
            f"{config.pad_token_id}, where texts begin; correct one of them"
        )
    return config


FAMILY = Family(
    read,
    Names(
        prefix="roberta.",
        layer=r"encoder\.layer\.(\d+)\.",
        layer_parts=LAYER,
        parts=EMBEDDINGS,
        heads={
            "masked_lm": {
                "lm_head": "head.out",
                "lm_head.decoder": "head.out",
                "lm_head.dense": "head.dense",
                "lm_head.layer_norm": "head.norm",
            },
            "sequence": {"classifier.dense": "head.dense", "classifier.out_proj": "head.out"},
            "token": {"classifier": "head.out"},
        },
        spare=("embeddings.position_ids", "pooler."),
    ),
)
