"""A tiny text encoder and a tiny vision transformer, servers that host them, and requests in the Open Inference
Protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

from stepwell.serving.pb import inference_pb2 as pb

VOCAB = 300
MAX_POSITIONS = 48
LADDERS = {
    "format": 1,
    "default": "depth",
    "ladders": {
        "depth": {"levels": [{"layers": n, "quality": q} for n, q in ((1, 0.6), (2, 0.9), (3, 1.0))]},
        "width": {"levels": [{"ffn": 16, "quality": 0.7}, {}]},
    },
}


@pytest.fixture(scope="session")
def bert() -> BertModel:
    """With random weights that do something."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.3,
    )
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture(scope="session")
def encoder(bert: BertModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model on disk, with a tokenizer of characters that puts 1 before and 2 after a text."""
    path = tmp_path_factory.mktemp("models") / "encoder"
    bert.save_pretrained(path)
    (path / "ladder.json").write_text(json.dumps(LADDERS))
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2} | {chr(c): c for c in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


IMAGE_SIZE = 32
BUDGETS = (0.5, 0.65, 0.8, 1.0)
VISION_LADDERS = {
    "format": 1,
    "default": "merge",
    "ladders": {
        "merge": {"reducer": "merge", "levels": [{"budget": b, "quality": 0.5 + b / 2} for b in BUDGETS]},
        "super": {"reducer": "super", "levels": [{"budget": 0.5, "quality": 0.5}, {}]},
        "depth": {"levels": [{"layers": 1, "quality": 0.4}, {"layers": 2, "quality": 0.7}, {}]},
    },
}


@pytest.fixture(scope="session")
def vit() -> ViTForImageClassification:
    """With random weights that do something."""
    torch.manual_seed(4)
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
        num_labels=5,
        id2label=dict(enumerate(["ant", "bee", "cat", "dog", "eel"])),
    )
    return ViTForImageClassification(config).eval()


@pytest.fixture(scope="session")
def classifier(vit: ViTForImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model on disk, with ladders of token budgets and of depths."""
    path = tmp_path_factory.mktemp("models") / "classifier"
    vit.save_pretrained(path)
    (path / "ladder.json").write_text(json.dumps(VISION_LADDERS))
    preprocessor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return path


@pytest.fixture(scope="module")
def hosting_classifier(wire: Any, tiny: Path, classifier: Path) -> Iterator[Any]:
    """One server for the tests of a file that leave it as it is."""
    settings = {"source": str(classifier), "profile": "default", "max_step_tokens": 400}
    with wire.run_server(tiny, [settings]) as running:
        yield running


def _request(model: str, tensors: Mapping[str, Any], **parameters: Any) -> pb.ModelInferRequest:
    """Arrays (int64 or float32) and lists of bytes, raw."""
    request = pb.ModelInferRequest(model_name=model)
    for name, value in tensors.items():
        if isinstance(value, list):
            request.inputs.add(name=name, datatype="BYTES", shape=[len(value)])
            request.raw_input_contents.append(b"".join(len(v).to_bytes(4, "little") + v for v in value))
        else:
            datatype = {"i": "INT64", "f": "FP32"}[value.dtype.kind]
            request.inputs.add(name=name, datatype=datatype, shape=value.shape)
            request.raw_input_contents.append(value.tobytes())
    for key, value in parameters.items():
        kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(request.parameters[key], kinds[type(value)], value)
    return request


def _array(response: pb.ModelInferResponse, name: str) -> np.ndarray[Any, Any]:
    index = [tensor.name for tensor in response.outputs].index(name)
    return np.frombuffer(response.raw_output_contents[index], "<f4").reshape(response.outputs[index].shape)


@pytest.fixture(scope="session")
def oip() -> SimpleNamespace:
    """``oip.request`` and ``oip.array``."""
    return SimpleNamespace(request=_request, array=_array)


@pytest.fixture(scope="module")
def hosting_encoder(wire: Any, tiny: Path, encoder: Path) -> Iterator[Any]:
    """One server for the tests of a file that leave it as it is."""
    with wire.run_server(tiny, [{"source": str(encoder), "profile": "default"}]) as running:
        yield running
