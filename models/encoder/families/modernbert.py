"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): pre-norm, rotary, layers of local attention, GeGLU, few biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.families.reading import common_fields, read_activation
from stepwell.models.encoder.family import Family, Names
from stepwell.models.encoder.gated import GatedFeedForward
from stepwell.models.encoder.heads import HeadConfig, read_head_kind, read_labels
from stepwell.models.encoder.layer import EncoderLayer
from stepwell.models.encoder.positions import RotaryLayer
from stepwell.models.encoder.rotary import RotaryAttention, RotaryTables
from stepwell.models.fields import ConfigError, positive, read_flag, read_size

_DEFAULTS = {"num_hidden_layers": 22, "intermediate_size": 1152, "max_position_embeddings": 8192}
_THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
"""Kind of layer -> where older files keep the base of its angles, and its default."""


def read(document: Mapping[str, Any]) -> EncoderConfig:
    """The parsed content of ``config.json`` -> configuration. Raises ConfigError."""
    norm_eps = positive("norm_eps", document.get("norm_eps", 1e-5))
    fields = common_fields({**_DEFAULTS, **document, "layer_norm_eps": norm_eps})
    if (head_dim := fields["hidden_size"] // fields["num_heads"]) % 2:
        raise ConfigError(f"num_attention_heads: rotary embedding needs heads of even width, got {head_dim}")
    return EncoderConfig(
        **fields,
        activation=read_activation(document, "hidden_activation"),
        position_table=False,
        pre_norm=True,
        norm_bias=read_flag(document, "norm_bias"),
        attention_bias=read_flag(document, "attention_bias"),
        ffn_bias=read_flag(document, "mlp_bias"),
        gated_ffn=True,
        rotary=_rotary(document, fields["num_layers"]),
        **_head(document),
    )


def _rotary(document: Mapping[str, Any], num_layers: int) -> tuple[RotaryLayer, ...]:
    window = read_size(document, "local_attention", 128) // 2
    kinds = {
        "full_attention": RotaryLayer(_theta(document, "full_attention"), None),
        "sliding_attention": RotaryLayer(_theta(document, "sliding_attention"), window),
    }
    names = _layer_types(document, num_layers)
    if len(names) != num_layers or not all(isinstance(name, str) and name in kinds for name in names):
        raise ConfigError(
            f"layer_types: expected {num_layers} of {', '.join(kinds)}, one a layer (num_hidden_layers), got {names!r}"
        )
    return tuple(kinds[name] for name in names)


def _layer_types(document: Mapping[str, Any], num_layers: int) -> Sequence[Any]:
    if (names := document.get("layer_types")) is not None:
        return names if isinstance(names, list) else [names]
    period = read_size(document, "global_attn_every_n_layers", 3)
    return ["sliding_attention" if layer % period else "full_attention" for layer in range(num_layers)]


def _theta(document: Mapping[str, Any], kind: str) -> float:
    """From ``rope_parameters`` (transformers 5) or a field of its own (before)."""
    older_key, default = _THETAS[kind]
    for key in ("rope_parameters", "rope_scaling"):
        entry = document.get(key) or {}
        entry = entry.get(kind, {}) if isinstance(entry, dict) and key == "rope_parameters" else entry
        if not isinstance(entry, dict) or (entry.get("rope_type") or entry.get("type") or "default") != "default":
            raise ConfigError(f"{key}: only rope_type 'default' is supported for {kind}, got {entry!r}")
    theta = ((document.get("rope_parameters") or {}).get(kind) or {}).get("rope_theta") or document.get(older_key)
    return positive(f"{older_key} (or rope_parameters.{kind}.rope_theta)", default if theta is None else theta)


def _head(document: Mapping[str, Any]) -> dict[str, Any]:
    kind = read_head_kind(document)
    if kind is None:
        return {}
    if (pooling := document.get("classifier_pooling", "cls")) not in ("cls", "mean"):
        raise ConfigError(f"classifier_pooling: expected cls or mean, got {pooling!r}")
    is_lm = kind == "masked_lm"
    labels = () if is_lm else read_labels(document)
    head = HeadConfig(
        kind,
        read_size(document, "vocab_size") if is_lm else len(labels),
        activation=read_activation(document, "classifier_activation"),
        norm=True,
        dense_bias=read_flag(document, "classifier_bias"),
        norm_bias=read_flag(document, "norm_bias"),
        out_bias=read_flag(document, "decoder_bias", default=True) if is_lm else True,
        pooling=pooling,
        tied=is_lm and read_flag(document, "tie_word_embeddings", default=True),
    )
    return {"head": head, "labels": labels}


def _layer(config: EncoderConfig, index: int, attention: nn.Module, ffn: nn.Module) -> EncoderLayer:
    layer = EncoderLayer(config, index, attention, ffn)
    if index == 0:
        layer.attention_norm = nn.Identity()  # the embeddings are normed
    return layer


_DENSE = {"head.dense": "head.dense", "head.norm": "head.norm"}

FAMILY = Family(
    read,
    Names(
        prefix="model.",
        layer=r"layers\.(\d+)\.",
        layer_parts={
            "attn.Wqkv": "attention.qkv",
            "attn.Wo": "attention.out",
            "attn_norm": "attention_norm",
            "mlp.Wi": "ffn.up_gate",
            "mlp.Wo": "ffn.down",
            "mlp_norm": "ffn_norm",
        },
        parts={
            "embeddings.tok_embeddings": "embeddings.word",
            "embeddings.norm": "embeddings.norm",
            "final_norm": "final_norm",
        },
        heads={
            "masked_lm": {**_DENSE, "decoder": "head.out"},
            "sequence": {**_DENSE, "classifier": "head.out"},
            "token": {**_DENSE, "classifier": "head.out"},
        },
    ),
    context=RotaryTables,
    attention=RotaryAttention,
    feed_forward=GatedFeedForward,
    layer=_layer,
)
