"""``config.json`` of an encoder: what is read, what is refused, how long a text may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.encoder import EncoderConfig
from stepwell.models.encoder.config import InputError
from stepwell.models.encoder.families import ENCODER_TYPES
from stepwell.models.encoder.heads import HeadConfig
from stepwell.models.fields import ConfigError
from stepwell.models.ladder import Architecture

SMALL = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {"model_type": "bert", "max_position_embeddings": 20, **SMALL}


def test_dimensions_and_defaults() -> None:
    config = EncoderConfig.from_hf({"model_type": "bert", "vocab_size": 10})
    assert config.architecture == Architecture(12, 12, 3072)
    assert (config.hidden_size, config.max_tokens, config.norm_eps, config.activation) == (768, 512, 1e-12, "gelu")
    assert config.task == "encode"
    assert config.outputs == {"embedding": (768,), "last_hidden_state": (-1, 768)}


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("BertForMaskedLM", (-1, 10)), ("BertForSequenceClassification", (3,)), ("BertForTokenClassification", (-1, 3))],
)
def test_the_architecture_says_which_head(architecture: str, shape: tuple[int, ...]) -> None:
    labels = {"0": "no", "1": "maybe", "2": "yes"}
    config = EncoderConfig.from_hf({**BERT, "architectures": [architecture], "id2label": labels})
    assert config.outputs["logits"] == shape
    assert config.labels == (() if architecture == "BertForMaskedLM" else ("no", "maybe", "yes"))


def test_heads_differ_between_families() -> None:
    heads = {
        brand: EncoderConfig.from_hf({"model_type": brand, **SMALL, "dim": 768, "architectures": ["XForMaskedLM"]}).head
        for brand in ("bert", "albert", "roberta")
    }
    assert heads["albert"] == HeadConfig("masked_lm", 10, "gelu_new", norm=True, dense_size=128, tied=True)
    assert heads["bert"] == heads["roberta"] == HeadConfig("masked_lm", 10, "gelu", norm=True, tied=True)


@pytest.mark.parametrize("model_type", ENCODER_TYPES)
def test_every_family_can_be_imported(model_type: str) -> None:
    assert EncoderConfig.from_hf({"model_type": model_type, "vocab_size": 9}).model_type == model_type


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "t5"}, r"model_type: 't5' is not supported; use one of albert, bert"),
        ({"model_type": None}, r"model_type: None is not supported"),
        ({"vocab_size": None}, r"vocab_size: expected a whole number in 1\.\."),
        ({"hidden_size": -1}, r"hidden_size: expected a whole number in 1\.\..*, got -1"),
        ({"num_attention_heads": 3}, r"num_attention_heads: 3 does not divide hidden_size 8"),
        ({"layer_norm_eps": 0}, r"layer_norm_eps: expected a number > 0, got 0"),
        ({"hidden_act": "mish"}, r"hidden_act: 'mish' is not supported; use one of gelu"),
        ({"position_embedding_type": "relative_key"}, r"position_embedding_type: 'relative_key' is not supported"),
        ({"is_decoder": True}, r"is_decoder: a causal model is no encoder"),
        ({"is_decoder": "no"}, r"is_decoder: expected true or false, got 'no'"),
        ({"pad_token_id": -1}, r"pad_token_id: expected a whole number in 0\.\."),
        ({"dtype": "int8"}, r"dtype: 'int8' is not supported; use one of float32"),
        (
            {"architectures": ["BertForQuestionAnswering"]},
            r"architectures: 'BertForQuestionAnswering' is not supported",
        ),
        ({"architectures": [3]}, r"architectures: 3 is not supported"),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"1": "x"}}, r"id2label: expected an object"),
        ({"architectures": ["BertForTokenClassification"], "num_labels": 0}, r"num_labels: expected a whole number"),
        ({"model_type": "albert", "inner_group_num": 2}, r"inner_group_num: only 1 is supported, got 2"),
        ({"model_type": "albert", "num_hidden_groups": 3}, r"num_hidden_groups: at most num_hidden_layers 2, got 3"),
        ({"model_type": "roberta", "pad_token_id": 19}, r"max_position_embeddings: 20 leave no position above"),
        ({"model_type": "distilbert", "dim": 10, "n_heads": 3}, r"num_attention_heads: 3 does not divide"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig.from_hf({**BERT, **fields})


FIELDS = [*BERT, "architectures", "id2label", "hidden_act", "tie_word_embeddings", "pad_token_id", "dtype"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("BertForMaskedLM")
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from("01a"), v, max_size=2)
)


@given(name=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_of_a_field_is_read_or_refused_by_its_name(name: str, value: Any) -> None:
    document = {**BERT, "architectures": ["BertForTokenClassification"], name: value}
    try:
        EncoderConfig.from_hf(document)
    except ConfigError as error:
        assert name in str(error)  # noqa: PT017


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("[1]")
    with pytest.raises(ConfigError, match=r"config\.json: expected a JSON object, got list"):
        EncoderConfig.from_directory(tmp_path)
    file.write_text(json.dumps({**BERT, "hidden_size": "x"}))
    with pytest.raises(ConfigError, match=r"config\.json: hidden_size: expected a whole number"):
        EncoderConfig.from_directory(tmp_path)


@pytest.mark.parametrize(("model_type", "limit"), [("bert", 20), ("roberta", 18), ("albert", 20), ("distilbert", 20)])
def test_a_text_may_be_as_long_as_there_are_positions(model_type: str, limit: int) -> None:
    config = EncoderConfig.from_hf({**BERT, "model_type": model_type})
    assert config.num_tokens([limit]) == limit
    with pytest.raises(InputError, match=rf"input_ids: {limit + 1} tokens, .* at most {limit}; shorten"):
        config.num_tokens([limit + 1])


@pytest.mark.parametrize("shape", [[], [0], [1, 4]])
def test_only_the_ids_of_one_text_are_taken(shape: list[int]) -> None:
    with pytest.raises(InputError, match=r"input_ids: expected the ids of one text, shape \[n\]"):
        EncoderConfig.from_hf(BERT).num_tokens(shape)
