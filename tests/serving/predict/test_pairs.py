"""Pairs of texts, over real channels: what transformers says of them, whatever form their segments come in."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from stepwell.serving import Client, Engine
from stepwell.serving.client import RequestFailedError
from stepwell.serving.errors import RequestError
from stepwell.serving.pb import inference_pb2 as pb

VOCAB = 130
TEXTS = ["a", "is it raining?", "short"]
PAIRS = ["a hypothesis that is longer", "no", "mid size"]
WEIGHTS = {"num_attention_heads": 4, "hidden_size": 32, "initializer_range": 0.3, "num_labels": 3}


def _save_tokenizer(path: Path) -> Path:
    """Of characters, with the template of BERT for pairs."""
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2} | {chr(c): c for c in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    specials = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", specials)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def ranker(tmp_path_factory) -> SimpleNamespace:
    """A BERT that classifies pairs: its path, and TEXTS with PAIRS one by one: ids, types, logits."""
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=VOCAB, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=48, **WEIGHTS
    )
    model = BertForSequenceClassification(config).eval()
    path = tmp_path_factory.mktemp("models") / "ranker"
    model.save_pretrained(path)
    _save_tokenizer(path)
    names = ["input_ids", "token_type_ids", "attention_mask"]  # as BertTokenizer has it
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), model_input_names=names)
    encoded = [tokenizer(text, pair, return_tensors="pt") for text, pair in zip(TEXTS, PAIRS, strict=True)]
    with torch.inference_mode():
        logits = torch.cat([model(**each).logits for each in encoded]).numpy()
        untyped = model(encoded[0]["input_ids"]).logits.numpy()
    assert np.abs(untyped - logits[:1]).max() > 1e-2, "types show"
    ids, types = ([each[key][0].tolist() for each in encoded] for key in ("input_ids", "token_type_ids"))
    return SimpleNamespace(path=path, ids=ids, types=types, logits=logits)


@pytest.fixture(scope="module")
def without_types(tmp_path_factory) -> SimpleNamespace:
    """A DistilBERT, which has no token types, and what it says of TEXTS with PAIRS."""
    torch.manual_seed(6)
    sizes = {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "initializer_range": 0.3, "num_labels": 3}
    config = DistilBertConfig(vocab_size=VOCAB, max_position_embeddings=48, **sizes)
    model = DistilBertForSequenceClassification(config).eval()
    path = tmp_path_factory.mktemp("models") / "untyped"
    model.save_pretrained(path)
    _save_tokenizer(path)
    pairs = [[1, *map(ord, text), 2, *map(ord, pair), 2] for text, pair in zip(TEXTS, PAIRS, strict=True)]
    with torch.inference_mode():
        logits = torch.cat([model(torch.tensor([ids])).logits for ids in pairs]).numpy()
    return SimpleNamespace(path=path, logits=logits)


@pytest.fixture(scope="module")
def hosting(wire, tiny, ranker, without_types):
    extra = [{"source": str(model.path), "profile": "default"} for model in (ranker, without_types)]
    with wire.run_server(tiny, extra) as running:
        yield running


def _bytes(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def _padded(rows: list[list[int]], left: bool) -> np.ndarray:
    longest = max(map(len, rows))
    fill = [[7] * (longest - len(row)) for row in rows]  # as types and as ids: what is padding is not looked at
    return np.array([(pad + row) if left else (row + pad) for pad, row in zip(fill, rows, strict=True)])


@pytest.mark.parametrize("form", ["text_pair", "ragged", "padded right", "padded left"])
def test_every_form_of_pairs_is_packed(hosting, oip, ranker, form: str) -> None:
    lens, left = [len(row) for row in ranker.ids], form == "padded left"
    mask = np.array([[0] * (max(lens) - n) + [1] * n if left else [1] * n + [0] * (max(lens) - n) for n in lens])
    tensors = {
        "text_pair": {"text": _bytes(TEXTS), "text_pair": _bytes(PAIRS)},
        "ragged": {
            "input_ids": np.array(list(chain(*ranker.ids))),
            "token_type_ids": np.array(list(chain(*ranker.types))),
            "seq_lens": np.array(lens),
        },
    }.get(
        form,
        {
            "input_ids": _padded(ranker.ids, left),
            "token_type_ids": _padded(ranker.types, left),
            "attention_mask": mask,
        },
    )
    response = hosting.oip.ModelInfer(oip.request("ranker", tensors), timeout=20)
    np.testing.assert_allclose(oip.array(response, "logits"), ranker.logits, atol=1e-4)
    assert response.parameters["tokens"].int64_param == sum(lens)


def test_pairs_and_single_texts_of_several_requests_share_batches(hosting, oip, ranker) -> None:
    requests = [
        oip.request("ranker", {"text": _bytes(TEXTS[i : i + 1]), "text_pair": _bytes(PAIRS[i : i + 1])})
        for i in range(3)
    ] + [oip.request("ranker", {"text": [b"alone"]})]
    for i, request in enumerate(requests):
        request.id = str(i)
    found = {r.infer_response.id: r.infer_response for r in hosting.oip.ModelStreamInfer(iter(requests), timeout=20)}
    for i in range(3):
        np.testing.assert_allclose(oip.array(found[str(i)], "logits"), ranker.logits[i : i + 1], atol=1e-4)
    alone = hosting.oip.ModelInfer(requests[3], timeout=20)
    np.testing.assert_allclose(oip.array(found["3"], "logits"), oip.array(alone, "logits"), atol=1e-4)


def test_the_typed_client_and_the_engine(hosting, ranker) -> None:
    forms = (
        {"texts": TEXTS, "text_pairs": PAIRS},
        {"token_ids": ranker.ids, "token_type_ids": ranker.types},
    )
    with Client(hosting.address) as client, Engine.open(str(ranker.path), profile="default") as engine:
        for form in forms:
            for answer in (client.predict("ranker", **form), engine.predict(**form)):
                np.testing.assert_allclose(answer.outputs["logits"], ranker.logits, atol=1e-4)
        for ask in (lambda **given: client.predict("ranker", **given), engine.predict):
            for given, words in BAD:
                with pytest.raises((RequestFailedError, RequestError), match=words):
                    ask(**given)


BAD = (
    ({"texts": ["a", "b"], "text_pairs": ["c"]}, "text_pair.*2 .*got 1"),
    ({"token_ids": [[1]], "text_pairs": ["c"]}, "text_pair"),
    ({"texts": ["a"], "token_type_ids": [[0]]}, "token_type_ids"),
    ({"token_ids": [[1, 5], [1]], "token_type_ids": [[0, 1]]}, "token_type_ids: must be one .*2 .*got 1"),
    (
        {"token_ids": [[1, 5], [1]], "token_type_ids": [[0], [0, 1]]},
        r"token_type_ids\[0\]: must have a type for each of the text's 2 tokens, got 1",
    ),
    ({"token_ids": [[1], [1, 5]], "token_type_ids": [[0], [0, 2]]}, r"token_type_ids\[2\]: must be in 0\.\.1, got 2"),
)


def test_a_model_without_types_takes_pairs_of_texts_and_refuses_types(hosting, oip, without_types) -> None:
    tensors = {"text": _bytes(TEXTS), "text_pair": _bytes(PAIRS)}
    response = hosting.oip.ModelInfer(oip.request("untyped", tensors), timeout=20)
    np.testing.assert_allclose(oip.array(response, "logits"), without_types.logits, atol=1e-4)
    zeros = {"input_ids": np.array([1, 5, 2]), "token_type_ids": np.zeros(3, np.int64)}
    hosting.oip.ModelInfer(oip.request("untyped", zeros), timeout=20)
    typed = {"input_ids": np.array([[1, 5, 2]]), "token_type_ids": np.array([[0, 0, 1]])}
    words = r"token_type_ids\[0\]\[2\]: this model has no token types but 0, got 1; leave token_type_ids out"
    with pytest.raises(grpc.RpcError, match=words):
        hosting.oip.ModelInfer(oip.request("untyped", typed), timeout=20)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"input_ids": np.arange(3), "token_type_ids": np.zeros(4, np.int64)},
            r"token_type_ids: must have input_ids' shape \[3\], got \[4\]",
        ),
        (
            {"input_ids": np.ones((1, 3), np.int64), "token_type_ids": np.zeros(3, np.int64)},
            r"token_type_ids: must have input_ids' shape \[1, 3\], got \[3\]",
        ),
        (
            {"input_ids": np.arange(3), "token_type_ids": np.array([0, 0, -1])},
            r"token_type_ids\[2\]: must be in 0\.\.1",
        ),
        ({"text": [b"a"], "token_type_ids": np.zeros(3, np.int64)}, "token_type_ids: belongs to token ids"),
        ({"text_pair": [b"a"]}, "inputs: exactly one of texts and input_ids"),
        ({"input_ids": np.arange(3), "text_pair": [b"a"]}, "text_pair: is the second segment of a text"),
        ({"text": [b"a", b"b"], "text_pair": [b"a"]}, "text_pair: must have a second segment for each of the 2 texts"),
        ({"text": [b"a"], "text_pair": [b"b" * 60]}, r"texts\[0\]: input_ids: 64 tokens, but .* at most 48"),
    ],
)
def test_bad_segments_are_told_precisely(hosting, oip, tensors, words: str) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        hosting.oip.ModelInfer(oip.request("ranker", tensors), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_metadata_names_the_inputs_of_segments(hosting) -> None:
    metadata = hosting.oip.ModelMetadata(pb.ModelMetadataRequest(name="ranker"), timeout=20)
    assert {"text_pair", "token_type_ids"} <= {tensor.name for tensor in metadata.inputs}
