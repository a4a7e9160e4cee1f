"""The configuration of a Llama-family decoder, read from a Hugging Face ``config.json``.

One description covers Llama 2/3, Qwen2, Qwen3 and Mistral: what differs between the brands is a field here, not a
file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stepwell.models.ladder import Architecture

DECODER_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float32}
_ROPE_TYPES = ("default", "linear", "llama3")


class ConfigError(ValueError):
    """A ``config.json`` that is not a decoder this runtime can run. The message names the field and the remedy."""


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
        if (activation := document.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise ConfigError(f"hidden_act: {activation!r} is not supported; this decoder runs SwiGLU ('silu')")
        hidden, heads = _size(document, "hidden_size"), _size(document, "num_attention_heads")
        kv_heads = _size(document, "num_key_value_heads", heads)
        head_dim = _size(document, "head_dim", hidden // heads)
        if heads % kv_heads:
            raise ConfigError(f"num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}")
        if head_dim % 2:
            raise ConfigError(f"head_dim: rotary embedding needs an even number, got {head_dim}")
        layers = _size(document, "num_hidden_layers")
        theta, scaling = _rope(document)
        attention_bias = bool(document.get("attention_bias", False))
        return cls(
            vocab_size=_size(document, "vocab_size"),
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_channels=_size(document, "intermediate_size"),
            max_positions=_size(document, "max_position_embeddings", 2048),
            rms_eps=float(document.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            layer_windows=_windows(document, model_type, layers),
            qkv_bias=attention_bias or model_type == "qwen2",
            o_bias=attention_bias and model_type != "qwen2",
            mlp_bias=bool(document.get("mlp_bias", False)),
            qk_norm=model_type == "qwen3",
            tied_embeddings=bool(document.get("tie_word_embeddings", False)),
            eos_token_ids=_token_ids(document.get("eos_token_id")),
            bos_token_id=document.get("bos_token_id"),
            dtype=_dtype(document.get("dtype") or document.get("torch_dtype") or "float32"),
            model_type=model_type,
        )

    @classmethod
    def from_directory(cls, directory: Path) -> DecoderConfig:
        """Read ``config.json`` and, for the end-of-text tokens, ``generation_config.json``. Raises ConfigError."""
        document = _read_json(directory / "config.json")
        generation = directory / "generation_config.json"
        if generation.is_file() and (ids := _token_ids(_read_json(generation).get("eos_token_id"))):
            document = {**document, "eos_token_id": list(ids)}
        try:
            return cls.from_hf(document)
        except ConfigError as error:
            raise ConfigError(f"{directory / 'config.json'}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}); restore the file") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(document).__name__}; restore the file")
    return document


def _size(document: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = document.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key}: expected a whole number >= 1, got {value!r}")
    return value


def _rope(document: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    """Base and scaling, from ``rope_parameters`` (transformers 5) or ``rope_theta`` + ``rope_scaling`` (before)."""
    scaling = dict(document.get("rope_parameters") or document.get("rope_scaling") or {})
    theta = float(scaling.get("rope_theta", document.get("rope_theta", 10_000.0)))
    scaling["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling["rope_type"] not in _ROPE_TYPES:
        raise ConfigError(f"rope_scaling.rope_type: {scaling['rope_type']!r} is not supported; use {_ROPE_TYPES}")
    if scaling.get("partial_rotary_factor", document.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError("partial_rotary_factor: only 1.0 is supported")
    return theta, scaling


def _windows(document: Mapping[str, Any], model_type: str, layers: int) -> tuple[int | None, ...]:
    window = document.get("sliding_window")
    if window is None or (model_type.startswith("qwen") and not document.get("use_sliding_window", False)):
        return ()
    if not isinstance(window, int) or window < 1:
        raise ConfigError(f"sliding_window: expected a whole number >= 1 or null, got {window!r}")
    if types := document.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = int(document.get("max_window_layers", 28)) if model_type.startswith("qwen") else 0
    return tuple(window if layer >= first else None for layer in range(layers))


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(item) for item in value) if isinstance(value, list) else (int(value),)


def _dtype(value: Any) -> torch.dtype:
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype: {value!r} is not supported; use one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
