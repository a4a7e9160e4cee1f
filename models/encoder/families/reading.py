"""Fields of ``config.json`` that several families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.models.encoder.heads import HeadConfig, read_head_kind, read_labels
from stepwell.models.fields import ConfigError, positive, read_dtype, read_flag, read_size
from stepwell.models.kernels.activations import ACTIVATIONS


def common_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of :class:`~stepwell.models.encoder.config.EncoderConfig` that all of BERT's kin spell alike; missing
    ones are as in BERT base. Raises ConfigError."""
    hidden, heads = read_size(document, "hidden_size", 768), read_size(document, "num_attention_heads", 12)
    check_heads(hidden, heads)
    if (kind := document.get("position_embedding_type") or "absolute") != "absolute":
        raise ConfigError(f"position_embedding_type: {kind!r} is not supported; use 'absolute'")
    if read_flag(document, "is_decoder"):
        raise ConfigError("is_decoder: a causal model is no encoder; set it to false")
    return {
        "model_type": document["model_type"],
        "vocab_size": read_size(document, "vocab_size"),
        "hidden_size": hidden,
        "num_layers": read_size(document, "num_hidden_layers", 12),
        "num_heads": heads,
        "ffn_channels": read_size(document, "intermediate_size", 3072),
        "max_positions": read_size(document, "max_position_embeddings", 512),
        "norm_eps": positive("layer_norm_eps", document.get("layer_norm_eps", 1e-12)),
        "pad_token_id": read_size(document, "pad_token_id", 0, least=0),
        "dtype": read_dtype(document),
    }


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raises ConfigError unless the heads share the width evenly."""
    if hidden_size % num_heads:
        raise ConfigError(f"num_attention_heads: {num_heads} does not divide hidden_size {hidden_size}")


def read_activation(document: Mapping[str, Any], key: str, default: str = "gelu") -> str:
    """The name of an activation. Raises ConfigError naming the choices."""
    name = document.get(key, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"{key}: {name!r} is not supported; use one of {', '.join(ACTIVATIONS)}")
    return name


def read_head(
    document: Mapping[str, Any],
    dense_activation: str,
    masked_lm_activation: str = "gelu",
    dense_size: int | None = None,
) -> dict[str, Any]:
    """The fields ``head`` and ``labels`` of a family whose heads are BERT's.

    Args:
        document: the parsed content of ``config.json``.
        dense_activation: of the dense layer below the classes of a text.
        masked_lm_activation: of the dense layer below the words.
        dense_size: width of that layer; None = the encoder's.

    Raises ConfigError.
    """
    kind = read_head_kind(document)
    if kind is None:
        return {}
    if kind == "masked_lm":
        tied = read_flag(document, "tie_word_embeddings", default=True)
        words = read_size(document, "vocab_size")
        return {"head": HeadConfig(kind, words, masked_lm_activation, norm=True, dense_size=dense_size, tied=tied)}
    labels = read_labels(document)
    return {"head": HeadConfig(kind, len(labels), dense_activation if kind == "sequence" else None), "labels": labels}
