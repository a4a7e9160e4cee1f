"""``config.json`` of every brand, as transformers writes it now and as it did before; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from stepwell.models.config import ConfigError, DecoderConfig
from stepwell.models.layers.rotary import inverse_frequencies

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def config(model_type: str = "llama", **fields: Any) -> DecoderConfig:
    return DecoderConfig.from_hf({"model_type": model_type, **SIZES, **fields})


def test_sizes_and_their_defaults() -> None:
    plain = config()
    assert (plain.num_layers, plain.num_heads, plain.num_kv_heads, plain.head_dim) == (4, 4, 4, 8)
    assert (plain.group_heads, plain.ffn_channels, plain.max_positions, plain.rms_eps) == (1, 48, 2048, 1e-6)
    grouped = config(num_key_value_heads=2, head_dim=16, max_position_embeddings=77, rms_norm_eps=1e-5)
    assert (grouped.num_kv_heads, grouped.group_heads, grouped.head_dim) == (2, 2, 16)
    assert (grouped.max_positions, grouped.rms_eps) == (77, 1e-5)
    assert (grouped.architecture.num_layers, grouped.architecture.num_kv_groups) == (4, 2)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_fields_left_out_mean_what_they_mean_to_transformers(model_type: str) -> None:
    fields = {**SIZES, "num_attention_heads": 32, "hidden_size": 64}
    theirs = AutoConfig.for_model(model_type, **fields)
    ours = DecoderConfig.from_hf({"model_type": model_type, **fields})
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 2)
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.window(0) == theirs.sliding_window if model_type == "mistral" else ours.window(0) is None
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.rms_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("model_type", "fields", "expected"),
    [
        ("llama", {}, (False, False, False, False)),
        ("llama", {"attention_bias": True}, (True, True, False, False)),
        ("llama", {"mlp_bias": True}, (False, False, True, False)),
        ("mistral", {"num_key_value_heads": 2}, (False, False, False, False)),
        ("qwen2", {}, (True, False, False, False)),
        ("qwen3", {}, (False, False, False, True)),
        ("qwen3", {"attention_bias": True}, (True, True, False, True)),
    ],
)
def test_biases_and_head_norms(model_type: str, fields: dict[str, Any], expected: tuple[bool, ...]) -> None:
    ours = config(model_type, **fields)
    assert (ours.qkv_bias, ours.o_bias, ours.mlp_bias, ours.qk_norm) == expected


@pytest.mark.parametrize(
    ("model_type", "fields", "windows"),
    [
        ("llama", {}, ()),
        ("mistral", {"sliding_window": 5}, (5, 5, 5, 5)),
        ("mistral", {"sliding_window": None}, ()),
        ("mistral", {}, (4096, 4096, 4096, 4096)),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": False}, ()),
        ("qwen2", {"sliding_window": 5}, ()),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 2}, (None, None, 5, 5)),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True}, (None,) * 4),
        (
            "qwen3",
            {
                "sliding_window": 5,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            },
            (5, None, None, 5),
        ),
    ],
)
def test_sliding_windows_by_brand(model_type: str, fields: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    ours = config(model_type, **{"num_key_value_heads": 2, **fields})
    assert ours.layer_windows == windows
    assert [ours.window(layer) for layer in range(4)] == list(windows or (None,) * 4)


@pytest.mark.parametrize(
    ("fields", "theta", "kind"),
    [
        ({}, 10_000.0, "default"),
        ({"rope_theta": 500.0}, 500.0, "default"),
        ({"rope_theta": 500, "rope_scaling": None}, 500.0, "default"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 500.0, "default"),
        ({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}, 500.0, "linear"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}, 500.0, "linear"),
        ({"rope_theta": 500.0, "rope_scaling": LLAMA3}, 500.0, "llama3"),
        ({"rope_parameters": {"rope_theta": 500.0, **LLAMA3}}, 500.0, "llama3"),
    ],
)
def test_rope_is_what_transformers_makes_of_it_in_both_forms(
    fields: dict[str, Any], theta: float, kind: str, random_model: Callable[..., PreTrainedModel]
) -> None:
    ours = config(**fields)
    assert (ours.rope_theta, ours.rope_scaling["rope_type"]) == (theta, kind)
    theirs = random_model("llama", **{**SIZES, **json.loads(json.dumps(fields))}).model.rotary_emb.inv_freq
    torch.testing.assert_close(inverse_frequencies(ours), theirs)


def test_end_of_text_tokens_of_the_generation_config_win(tmp_path: Path) -> None:
    document = {"model_type": "llama", **SIZES, "eos_token_id": 2, "bos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert DecoderConfig.from_directory(tmp_path).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    read = DecoderConfig.from_directory(tmp_path)
    assert (read.eos_token_ids, read.bos_token_id) == ((7, 9), 1)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"torch_dtype": "float16"}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_stored_precision(fields: dict[str, Any], dtype: torch.dtype) -> None:
    assert config(**fields).dtype == dtype


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_type": "gpt2"}, ["model_type", "'gpt2'", "llama, mistral, qwen2, qwen3"]),
        ({"model_type": None}, ["model_type", "None"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "silu"]),
        ({"hidden_size": None}, ["hidden_size", "whole number", "None"]),
        ({"hidden_size": "32"}, ["hidden_size", "'32'"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "got 0"]),
        ({"intermediate_size": 48.0}, ["intermediate_size", "48.0"]),
        ({"vocab_size": 10**12}, ["vocab_size", str(10**12)]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3", "divide", "4"]),
        ({"head_dim": 7}, ["head_dim", "even", "7"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps", "> 0", "0"]),
        ({"rms_norm_eps": None}, ["rms_norm_eps", "None"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"rope_theta": -1}, ["rope_theta", "> 0", "-1"]),
        ({"rope_scaling": 4}, ["rope_scaling", "object", "4"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, ["rope_scaling", "for all layers"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_type", "'yarn'", "default, linear, llama3"]),
        ({"rope_scaling": {"rope_type": ["linear"]}}, ["rope_type", "['linear']"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["rope_scaling.factor", "linear", "None"]),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, ["rope_scaling.factor", "llama3", "'8'"]),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, ["high_freq_factor", "above", "1.0"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5", "only 1.0"]),
        ({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 0}, ["sliding_window", "got 0"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings", "true or false", "'no'"]),
        ({"attention_bias": 1}, ["attention_bias", "true or false", "1"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "token id", "'</s>'"]),
        ({"dtype": "int8"}, ["dtype", "'int8'", "float32, bfloat16"]),
    ],
)
def test_a_bad_field_is_refused_with_value_and_remedy(fields: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        DecoderConfig.from_hf({"model_type": "llama", **SIZES, **fields})
    for words in told:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (["full_attention"] * 3, "list of 4 kinds"),
        ("sliding_attention", "list of 4 kinds"),
        (["full_attention"] * 3 + ["chunked_attention"], "'chunked_attention' is not supported"),
    ],
)
def test_unknown_layer_types_are_refused(kinds: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=f"layer_types: .*{told}"):
        config("qwen3", sliding_window=5, use_sliding_window=True, layer_types=kinds)


@pytest.mark.parametrize("content", [b"", b"{]", b"\xff", b"[]", b"[" * 100_000])
def test_a_file_that_is_not_a_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json: .*restore the file"):
        DecoderConfig.from_directory(tmp_path)


def test_an_error_in_a_field_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"config\.json: hidden_size: "):
        DecoderConfig.from_directory(tmp_path)
