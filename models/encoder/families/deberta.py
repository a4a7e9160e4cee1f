"""DeBERTa (He et al. 2021, arXiv 2006.03654), and what its second and third versions have in common with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.disentangled import DistanceTable, InterleavedAttention
from stepwell.models.encoder.families.bert import EMBEDDINGS, LAYER
from stepwell.models.encoder.families.reading import common_fields, read_activation, read_head
from stepwell.models.encoder.family import Family, Names
from stepwell.models.encoder.positions import RelativePositions
from stepwell.models.fields import ConfigError, read_flag, read_size

_TERMS = {"c2p", "p2c"}
_LIKE_BERT = {
    "cls.predictions": "head.out",
    "cls.predictions.decoder": "head.out",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
}
_ENHANCED = {
    "lm_predictions.lm_head": "head.out",
    "lm_predictions.lm_head.dense": "head.dense",
    "lm_predictions.lm_head.LayerNorm": "head.norm",
}


def read(document: Mapping[str, Any]) -> EncoderConfig:
    """The parsed content of ``config.json`` -> configuration. Raises ConfigError."""
    if read_flag(document, "talking_head"):
        raise ConfigError("talking_head: true is not supported; it mixes heads, which levels leave out")
    return read_common(document, RelativePositions(**read_terms(document), interleaved=True))


def read_terms(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of :class:`RelativePositions` that all versions spell alike. Raises ConfigError."""
    terms = document.get("pos_att_type") or []
    if isinstance(terms, str):
        terms = [term.strip() for term in terms.lower().split("|")]
    if not isinstance(terms, list) or len(set(map(str, terms))) < len(terms) or not set(map(str, terms)) <= _TERMS:
        raise ConfigError(f"pos_att_type: expected some of {', '.join(sorted(_TERMS))}, got {terms!r}")
    is_relative = read_flag(document, "relative_attention")
    return {
        "num_terms": 1 + len(terms),
        "span": read_max_distance(document) if is_relative else 0,
        "content_to_position": is_relative and "c2p" in terms,
        "position_to_content": is_relative and "p2c" in terms,
        "enhanced_head": not read_flag(document, "legacy", default=True),
    }


def read_max_distance(document: Mapping[str, Any]) -> int:
    """``max_relative_positions``; below 1 it is the number of positions. Raises ConfigError."""
    value = read_size(document, "max_relative_positions", -1, least=-(2**24))
    return value if value >= 1 else read_size(document, "max_position_embeddings", 512)


def read_common(document: Mapping[str, Any], relative: RelativePositions) -> EncoderConfig:
    """The configuration of any version. Raises ConfigError."""
    fields = common_fields({"layer_norm_eps": 1e-7, **document})
    hidden, activation = fields["hidden_size"], read_activation(document, "hidden_act")
    embedding = read_size(document, "embedding_size", hidden)
    check_equal(document, "pooler_hidden_size", hidden, "hidden_size")
    check_equal(document, "attention_head_size", hidden // fields["num_heads"], "hidden_size / num_attention_heads")
    if relative.enhanced_head and embedding != hidden:
        raise ConfigError(f"legacy: false needs embedding_size equal to hidden_size {hidden}, got {embedding}")
    if relative.enhanced_head:
        document = {**document, "tie_word_embeddings": True}
    return EncoderConfig(
        **fields,
        activation=activation,
        type_vocab_size=read_size(document, "type_vocab_size", 0, least=0),
        embedding_size=None if embedding == hidden else embedding,
        projects_before_norm=True,
        position_table=read_flag(document, "position_biased_input", default=True),
        relative=relative,
        **read_head(document, read_activation(document, "pooler_hidden_act"), activation, dense_size=embedding),
    )


def check_equal(document: Mapping[str, Any], key: str, expected: int, what: str) -> None:
    """Raises ConfigError if the field is there and another number."""
    if (value := read_size(document, key, expected)) != expected:
        raise ConfigError(f"{key}: only {what}, {expected}, is supported, got {value}")


class DebertaNames(Names):
    """Checkpoints may hold positions that are not used, and the head that the configuration does not choose."""

    def _module(self, path: str, config: EncoderConfig) -> str | None:
        assert config.relative is not None
        if path == "embeddings.position_embeddings" and not config.position_table:
            return None
        if path in (_LIKE_BERT if config.relative.enhanced_head else _ENHANCED):
            return None
        return super()._module(path, config)


def names(attention: Mapping[str, str], parts: Mapping[str, str]) -> DebertaNames:
    """The table of a version, whose attention is not BERT's and that may have further parts."""
    kept = {name: part for name, part in LAYER.items() if not name.startswith("attention.self.")}
    return DebertaNames(
        prefix="deberta.",
        layer=r"encoder\.layer\.(\d+)\.",
        layer_parts={**kept, **attention},
        parts={
            **EMBEDDINGS,
            "embeddings.embed_proj": "embeddings.project",
            "encoder.rel_embeddings": "context.rows",
            **parts,
        },
        heads={
            "masked_lm": {**_LIKE_BERT, **_ENHANCED},
            "sequence": {"pooler.dense": "head.dense", "classifier": "head.out"},
            "token": {"classifier": "head.out"},
        },
        spare=(
            "embeddings.position_ids",
            "embeddings.position_embeddings",
            "pooler.",
            "cls.predictions.",
            "lm_predictions.",
            "mask_predictions.",
        ),
    )


FAMILY = Family(
    read,
    names(
        {
            "attention.self": "attention",
            "attention.self.in_proj": "attention.content",
            "attention.self.pos_proj": "attention.distance_key",
            "attention.self.pos_q_proj": "attention.distance_query",
        },
        {},
    ),
    context=DistanceTable,
    attention=InterleavedAttention,
)
