"""The configuration of a Llama-family decoder, read from a Hugging Face ``config.json``.

One description covers Llama 2/3, Qwen2, Qwen3 and Mistral: what differs between the brands is a field here, not a
file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stepwell.models.fields import ConfigError, positive, read_dtype, read_flag, read_json, read_size
from stepwell.models.ladder import Architecture

__all__ = ["DECODER_TYPES", "ConfigError", "DecoderConfig"]

DECODER_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_BRAND_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
    "qwen2": {"max_position_embeddings": 32_768},
    "qwen3": {"head_dim": 128, "max_position_embeddings": 32_768},
}
"""What transformers takes for a field that is not in the file, where that is not the same for all."""


@dataclass(frozen=True)
class DecoderConfig:
    """Dimensions and switches of a decoder. Sizes are counts; rotary quantities are per Su et al. 2021 (RoPE)."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    """Key-value heads; each serves ``num_heads / num_kv_heads`` query heads (GQA)."""
    head_dim: int
    ffn_channels: int
    max_positions: int
    """Context length in tokens."""
    rms_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    """``rope_type`` default, linear or llama3, with that type's parameters."""
    layer_windows: tuple[int | None, ...] = ()
    """Per layer: keys a query sees, counting its own (sliding window), or None for all. Empty = None for all."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMS norm over each head of queries and keys (Qwen3)."""
    tied_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    dtype: torch.dtype = torch.float32
    """Precision the weights run in unless another is asked for: the stored one, but float32 for float16 (CPUs have no
    fast path for it, and float32 holds its values exactly)."""
    model_type: str = "llama"

    @cached_property
    def architecture(self) -> Architecture:
        """The dimensions ladders are cut from."""
        return Architecture(self.num_layers, self.num_kv_heads, self.ffn_channels)

    @property
    def group_heads(self) -> int:
        """Query heads per key-value head."""
        return self.num_heads // self.num_kv_heads

    def window(self, layer: int) -> int | None:
        return self.layer_windows[layer] if self.layer_windows else None

    @classmethod
    def from_hf(cls, document: Mapping[str, Any]) -> DecoderConfig:
        """Read the parsed content of a Hugging Face ``config.json``. Raises ConfigError."""
        model_type = document.get("model_type")
        if model_type not in DECODER_TYPES:
            raise ConfigError(f"model_type: {model_type!r} is not supported; use one of {', '.join(DECODER_TYPES)}")
        document = {**_BRAND_DEFAULTS[model_type], **document}
        if (activation := document.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise ConfigError(f"hidden_act: {activation!r} is not supported; this decoder runs SwiGLU ('silu')")
        hidden, heads = read_size(document, "hidden_size"), read_size(document, "num_attention_heads")
        kv_heads = read_size(document, "num_key_value_heads", heads)
        head_dim = read_size(document, "head_dim", hidden // heads)
        if heads % kv_heads:
            raise ConfigError(f"num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}")
        if head_dim % 2:
            raise ConfigError(f"head_dim: rotary embedding needs an even number, got {head_dim}")
        layers = read_size(document, "num_hidden_layers")
        theta, scaling = _rope(document)
        attention_bias = read_flag(document, "attention_bias")
        return cls(
            vocab_size=read_size(document, "vocab_size"),
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_channels=read_size(document, "intermediate_size"),
            max_positions=read_size(document, "max_position_embeddings", 2048),
            rms_eps=positive("rms_norm_eps", document.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            layer_windows=_windows(document, model_type, layers),
            qkv_bias=attention_bias or model_type == "qwen2",
            o_bias=attention_bias and model_type != "qwen2",
            mlp_bias=read_flag(document, "mlp_bias"),
            qk_norm=model_type == "qwen3",
            tied_embeddings=read_flag(document, "tie_word_embeddings"),
            eos_token_ids=_token_ids(document, "eos_token_id"),
            bos_token_id=next(iter(_token_ids(document, "bos_token_id")), None),
            dtype=read_dtype(document),
            model_type=model_type,
        )

    @classmethod
    def from_directory(cls, directory: Path) -> DecoderConfig:
        """Read ``config.json`` and, for the end-of-text tokens, ``generation_config.json``. Raises ConfigError."""
        document = read_json(directory / "config.json")
        generation = directory / "generation_config.json"
        if generation.is_file() and (ids := read_json(generation).get("eos_token_id")) is not None:
            document = {**document, "eos_token_id": ids}
        try:
            return cls.from_hf(document)
        except ConfigError as error:
            raise ConfigError(f"{directory / 'config.json'}: {error}") from error


def _rope(document: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    """Base and scaling, from ``rope_parameters`` (transformers 5) or ``rope_theta`` + ``rope_scaling`` (before)."""
    scaling = document.get("rope_scaling") or document.get("rope_parameters") or {}
    if not isinstance(scaling, dict) or any(isinstance(value, dict) for value in scaling.values()):
        raise ConfigError(f"rope_scaling: expected one flat object for all layers, got {scaling!r}")
    scaling = dict(scaling)
    kind = scaling["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in tuple(_ROPE_FIELDS):
        raise ConfigError(f"rope_scaling.rope_type: {kind!r} is not supported; use one of {', '.join(_ROPE_FIELDS)}")
    if kind == "llama3":
        scaling.setdefault("original_max_position_embeddings", document.get("max_position_embeddings", 2048))
    for name in _ROPE_FIELDS[kind]:
        positive(f"rope_scaling.{name} (of rope_type {kind})", scaling.get(name))
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ConfigError(
            f"rope_scaling.high_freq_factor: must be above low_freq_factor {scaling['low_freq_factor']}, got "
            f"{scaling['high_freq_factor']}"
        )
    partial = scaling.get("partial_rotary_factor", document.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise ConfigError(f"partial_rotary_factor: only 1.0 is supported, got {partial!r}")
    return positive("rope_theta", scaling.get("rope_theta", document.get("rope_theta", 10_000.0))), scaling


def _windows(document: Mapping[str, Any], model_type: str, layers: int) -> tuple[int | None, ...]:
    window = document.get("sliding_window")
    if window is None or (model_type.startswith("qwen") and not read_flag(document, "use_sliding_window")):
        return ()
    window = read_size(document, "sliding_window")
    if (kinds := document.get("layer_types")) is not None:
        _check_layer_types(kinds, layers)
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = document.get("max_window_layers", 28) if model_type.startswith("qwen") else 0
    if not isinstance(first, int):
        raise ConfigError(f"max_window_layers: expected a whole number, got {first!r}")
    return tuple(window if layer >= first else None for layer in range(layers))


def _check_layer_types(kinds: Any, layers: int) -> None:
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ConfigError(f"layer_types: expected a list of {layers} kinds, one a layer, got {kinds!r}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"layer_types: {kind!r} is not supported; use full_attention or sliding_attention")


def _token_ids(document: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = document.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
        raise ConfigError(f"{key}: expected a token id or a list of them, got {value!r}")
    return tuple(ids)
