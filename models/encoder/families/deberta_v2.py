"""DeBERTa v2 and v3 (He et al. 2023, arXiv 2111.09543): distances in buckets, shared projections, a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.convolution import ConvolvedLayer
from stepwell.models.encoder.disentangled import DisentangledAttention, DistanceTable, relative_positions
from stepwell.models.encoder.families.deberta import names, read_common, read_max_distance, read_terms
from stepwell.models.encoder.families.reading import read_activation
from stepwell.models.encoder.family import Family
from stepwell.models.encoder.layer import EncoderLayer
from stepwell.models.encoder.positions import Convolution, RelativePositions
from stepwell.models.fields import ConfigError, read_flag, read_size

_DEFAULTS = {
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
}


def read(document: Mapping[str, Any]) -> EncoderConfig:
    """The parsed content of ``config.json`` -> configuration. Raises ConfigError."""
    document = {**_DEFAULTS, **document}
    terms = read_terms(document)
    if terms["span"]:
        terms.update(_buckets(document))
    relative = RelativePositions(
        **terms,
        shares_projections=read_flag(document, "share_att_key"),
        table_norm=_has_table_norm(document),
        convolution=_convolution(document),
    )
    return read_common(document, relative)


def _buckets(document: Mapping[str, Any]) -> dict[str, int]:
    buckets, longest = read_size(document, "position_buckets", -1, least=-1), read_max_distance(document)
    if buckets <= 0:
        return {}
    if not 2 <= buckets < 2 * (longest - 1):
        raise ConfigError(
            f"position_buckets: expected 2 or more and less than twice the largest distance {longest - 1}, got "
            f"{buckets}; correct it or max_relative_positions"
        )
    return {"num_buckets": buckets, "span": buckets, "max_distance": longest}


def _has_table_norm(document: Mapping[str, Any]) -> bool:
    kind = document.get("norm_rel_ebd") or "none"
    if kind not in ("none", "layer_norm"):
        raise ConfigError(f"norm_rel_ebd: expected none or layer_norm, got {kind!r}")
    return bool(kind == "layer_norm")


def _convolution(document: Mapping[str, Any]) -> Convolution | None:
    size, groups = read_size(document, "conv_kernel_size", 0, least=0), read_size(document, "conv_groups", 1)
    if size == 0:
        return None
    if size % 2 == 0:
        raise ConfigError(f"conv_kernel_size: expected an odd number, or 0 for no convolution, got {size}")
    if (hidden := read_size(document, "hidden_size")) % groups:
        raise ConfigError(f"conv_groups: {groups} does not divide hidden_size {hidden}")
    return Convolution(size, groups, read_activation(document, "conv_act", "tanh"))


def _layer(config: EncoderConfig, index: int, attention: nn.Module, ffn: nn.Module) -> EncoderLayer:
    is_convolved = index == 0 and relative_positions(config).convolution is not None
    return (ConvolvedLayer if is_convolved else EncoderLayer)(config, index, attention, ffn)


FAMILY = Family(
    read,
    names(
        {
            "attention.self.query_proj": "attention.query",
            "attention.self.key_proj": "attention.key",
            "attention.self.value_proj": "attention.value",
            "attention.self.pos_key_proj": "attention.distance_key",
            "attention.self.pos_query_proj": "attention.distance_query",
        },
        {
            "encoder.LayerNorm": "context.norm",
            "encoder.conv.conv": "layers.0.convolution",
            "encoder.conv.LayerNorm": "layers.0.convolution_norm",
        },
    ),
    context=DistanceTable,
    attention=DisentangledAttention,
    layer=_layer,
)
