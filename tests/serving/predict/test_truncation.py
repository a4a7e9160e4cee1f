"""Texts that are too long for a model in the layout of sentence-transformers: cut as that library does, and told so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stepwell.models.loader import ModelLoadError
from stepwell.serving import Engine
from stepwell.serving.errors import RequestError

LIMIT = 8


@pytest.fixture(scope="module")
def sentences(encoder: Path, tmp_path_factory) -> Path:
    """The encoder with a tokenizer that puts 1 before and 2 after a text, for texts of at most LIMIT tokens."""
    path = tmp_path_factory.mktemp("models") / "sentences"
    shutil.copytree(encoder, path)
    transformer = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (path / "modules.json").write_text(json.dumps([transformer]))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LIMIT, "do_lower_case": False}))
    return path


def test_texts_are_cut_and_what_is_counted_is_what_ran(sentences: Path, bert) -> None:
    texts = ["short", "a text that is much longer than that", "123456"]
    rows = [[1, *map(ord, text[: LIMIT - 2]), 2] for text in texts]
    with torch.inference_mode():
        expected = [bert(torch.tensor([row])).last_hidden_state[0].numpy() for row in rows]
    with Engine.open(str(sentences), profile="default") as engine:
        answer = engine.predict(texts=texts)
        np.testing.assert_allclose(answer.outputs["last_hidden_state"], np.concatenate(expected), atol=1e-4)
        assert answer.report.prompt_tokens == answer.report.tokens_kept == sum(map(len, rows))
        # Of a pair the longer text is cut first. This tokenizer puts nothing between and after.
        pair = engine.predict(texts=["ab"], text_pairs=["cdefghijkl"], outputs=["last_hidden_state"])
        assert pair.outputs["last_hidden_state"].shape[0] == LIMIT
        ids = [1, *map(ord, texts[1]), 2]
        words = rf"{len(ids)} tokens, but the model takes at most {LIMIT} \(max_seq_length of .* as text, which is cut"
        with pytest.raises(RequestError, match=words):
            engine.predict(token_ids=[ids])


def test_a_limit_below_the_special_tokens_is_refused(sentences: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(sentences, path)
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 1}))
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["post_processor"]["pair"] = [*tokenizer["post_processor"]["single"]]
    tokenizer["post_processor"]["pair"].insert(2, {"Sequence": {"id": "B", "type_id": 1}})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelLoadError, match=r"max_seq_length: 1 tokens leave nothing of a pair, to which .* adds 2"):
        Engine.open(str(path), profile="default")
