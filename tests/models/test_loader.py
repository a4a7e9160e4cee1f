"""Opening models: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stepwell.models.config import DecoderConfig
from stepwell.models.loader import (
    ModelLoadError,
    load_predictor,
    open_model,
    read_files,
    save_checkpoint,
    shipped_models,
)

WEIGHTS = "model.safetensors"
TOKENS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def sharded(make_checkpoint: Any) -> Path:
    path: Path = make_checkpoint(shard_size="30KB").path
    return path


@pytest.fixture
def folder(make_checkpoint: Any, tmp_path: Path) -> Path:
    """A good checkpoint, to be spoilt."""
    path = tmp_path / "tiny"
    shutil.copytree(make_checkpoint(num_hidden_layers=1).path, path)
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        open_model(str(path))
    return str(caught.value)


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_a_good_checkpoint_opens(folder: Path) -> None:
    opened = open_model(str(folder))
    assert (opened.name, opened.path, opened.tokenizer) == ("tiny", folder, None)
    assert opened.ladders.subnet("max") == opened.config.architecture.full
    stored = load_file(folder / WEIGHTS)
    for name, weight in opened.decoder.state_dict().items():
        assert torch.equal(weight, stored[name])
    assert not any(weight.requires_grad for weight in opened.decoder.parameters())


def test_the_name_of_a_relative_path_is_the_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert open_model(".").name == "tiny"


def test_a_saved_checkpoint_opens_as_it_was(folder: Path, tmp_path: Path) -> None:
    first = open_model(str(folder))
    save_checkpoint(tmp_path / "new" / "copy", first.decoder, json.loads((folder / "config.json").read_text()))
    second = open_model(str(tmp_path / "new" / "copy"))
    assert second.config == first.config
    for name, weight in first.decoder.state_dict().items():
        assert torch.equal(weight, second.decoder.state_dict()[name])


def test_an_open_model_does_not_need_its_files(folder: Path) -> None:
    decoder = open_model(str(folder)).decoder
    full = decoder.config.architecture.full
    before = decoder.forward_dense(TOKENS, full)[0]
    with (folder / WEIGHTS).open("r+b") as file:  # in place: a mapped file would show it
        file.write(bytes((folder / WEIGHTS).stat().st_size))
    assert torch.equal(decoder.forward_dense(TOKENS, full)[0], before)


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_open_by_name(name: str) -> None:
    files = read_files(name)
    assert files.name == name
    assert files.ladders.subnet("max") == files.config.architecture.full
    if isinstance(files.config, DecoderConfig):
        assert open_model(name).decoder.config == files.config
        assert files.tokenizer is not None
        assert files.tokenizer.vocab_size <= files.config.vocab_size
    else:
        assert files.image_input is not None
        assert load_predictor(files).config == files.config


def test_a_model_that_generates_no_text_is_no_decoder() -> None:
    with pytest.raises(ModelLoadError, match="model_type 'vit' generates no text; give a decoder"):
        open_model("routed-vit")


@pytest.mark.parametrize("fraction", [0.0, 1e-4, 0.01, 0.05, 0.3, 0.9, 0.99999])
def test_truncated_weights(fraction: float, folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    os.truncate(folder / WEIGHTS, int(size * fraction))
    message = refusal(folder)
    assert f"{folder / WEIGHTS}: not a readable safetensors file" in message
    assert message.endswith("fetch it again")


@pytest.mark.parametrize(
    "content", [b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60, b"{}", b"version https://git-lfs.github.com/spec/v1"]
)
def test_weights_that_are_something_else(content: bytes, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(content)
    assert "not a readable safetensors file" in refusal(folder)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_wrong_byte_in_the_header_is_noticed_or_harmless(data: st.DataObject, sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0]
    good = shard.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    at = data.draw(st.integers(0, header_end - 1))
    wrong = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[at]))
    expected = open_model(str(sharded)).decoder.state_dict()
    shard.write_bytes(good[:at] + bytes([wrong]) + good[at + 1 :])
    try:
        read = open_model(str(sharded)).decoder.state_dict()
    except ModelLoadError as error:
        read = expected if str(sharded) in str(error) else {}
    finally:
        shard.write_bytes(good)
    assert read.keys() == expected.keys(), "the error does not name the checkpoint"
    assert all(torch.equal(weight, expected[name]) for name, weight in read.items())


def test_a_missing_shard(sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path / "copy")
    shard = sorted((tmp_path / "copy").glob("*.safetensors"))[1]
    shard.unlink()
    message = refusal(tmp_path / "copy")
    assert shard.name in message
    assert "fetch all shards" in message


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ["b"]}}', "[" * 100_000]
    + [
        json.dumps({"weight_map": {"a": name}})
        for name in ("../other/model.safetensors", "", ".", "absent.safetensors")
    ],
)
def test_a_bad_index(index: str, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(index)
    message = refusal(folder)
    assert f"{WEIGHTS}.index.json: " in message
    assert "fetch" in message


def test_an_index_does_not_lead_to_a_pickle(folder: Path, tmp_path: Path) -> None:
    spring = trap(folder / "weights.bin", tmp_path)
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"model.norm.weight": "weights.bin"}}')
    assert "weights.bin: not a readable safetensors file" in refusal(folder)
    assert not spring.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("model.norm.weight"), ["1 tensors are missing", "model.norm.weight", "config.json"]),
        (lambda t: t.clear(), ["tensors are missing"]),
        (lambda t: t.update({"model.extra.weight": torch.ones(2)}), ["unexpected tensor model.extra.weight", "llama"]),
        (lambda t: t.update({"model.norm.weight": torch.ones(31)}), ["model.norm.weight", "[31]", "implies [32]"]),
        (lambda t: t.update({"model.norm.weight": torch.ones(32, 1)}), ["model.norm.weight", "[32, 1]"]),
        (lambda t: t.update({"model.norm.weight": torch.ones(32).int()}), ["model.norm.weight", "int32", "quantised"]),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}), ["q_proj.bias", "unexpected"]),
    ],
)
def test_weights_that_do_not_fit_the_configuration(
    change: Callable[[dict[str, torch.Tensor]], Any], told: list[str], folder: Path
) -> None:
    edit_weights(folder, change)
    message = refusal(folder)
    for words in [str(folder), *told]:
        assert words in message


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_size": 64}, ["has shape", "implies"]),
        ({"vocab_size": 62}, ["[61, 32]", "[62, 32]"]),
        ({"num_hidden_layers": 2}, ["9 tensors are missing", "model.layers.1."]),
        ({"num_key_value_heads": 4}, ["k_proj.weight", "[16, 32]", "[32, 32]"]),
        ({"model_type": "qwen3"}, ["tensors are missing", "k_norm"]),
        ({"model_type": "gpt2"}, ["config.json: model_type: 'gpt2'", "gpt2", "llama", "mistral"]),
        ({"hidden_act": "gelu"}, ["config.json: hidden_act: 'gelu'"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["config.json: rope_scaling.rope_type: 'yarn'"]),
        ({"max_position_embeddings": 10**13}, ["config.json: max_position_embeddings", str(10**13)]),
    ],
)
def test_a_configuration_that_does_not_fit_or_cannot_run(fields: dict[str, Any], told: list[str], folder: Path) -> None:
    edit_json(folder / "config.json", **fields)
    message = refusal(folder)
    for words in [str(folder), *told]:
        assert words in message


def test_what_may_lie_beside_the_weights(folder: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=True)
    edit_weights(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    opened = open_model(str(folder))  # an untied head in a tied model, and the frequencies older checkpoints store
    assert opened.decoder.head is opened.decoder.model.embed_tokens


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "ladder.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[]"])
def test_a_json_file_that_is_none(file: str, content: bytes, folder: Path) -> None:
    (folder / file).write_bytes(content)
    assert str(folder / file) in refusal(folder)


def test_a_ladder_that_does_not_match_the_weights(folder: Path) -> None:
    document = {"format": 1, "ladders": {"width": {"levels": [{"ffn": 48}, {"ffn": 64}]}}}
    (folder / "ladder.json").write_text(json.dumps(document))
    message = refusal(folder)
    assert f"{folder / 'ladder.json'}: ladders.width.levels[1].ffn: expected a whole number in 0..48" in message
    assert "64" in message


class _Trap:
    def __init__(self, spring: Path) -> None:
        self.spring = spring

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.spring,)


def trap(path: Path, tmp_path: Path) -> Path:
    """A pickle at ``path`` that makes the returned file when it is read."""
    spring = tmp_path / "sprung"
    path.write_bytes(pickle.dumps(_Trap(spring)))
    return spring


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "weights.pkl", "last.ckpt"])
def test_a_pickle_is_refused_unread(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    spring = trap(folder / name, tmp_path)
    message = refusal(folder)
    assert f"{name} is a pickle" in message
    assert "convert the checkpoint to safetensors" in message
    assert not spring.exists()
    pickle.loads((folder / name).read_bytes())
    assert spring.exists(), "the trap does not work"


def test_a_pickle_beside_good_weights_is_left_alone(folder: Path, tmp_path: Path) -> None:
    spring = trap(folder / "pytorch_model.bin", tmp_path)
    open_model(str(folder))
    assert not spring.exists()


@pytest.mark.parametrize("missing", ["config.json", WEIGHTS])
def test_a_missing_file_is_named(missing: str, folder: Path) -> None:
    (folder / missing).unlink()
    assert missing in refusal(folder)


@pytest.mark.parametrize("spec", ["no-such-model", "/no/such/model", "./no/model", "a/b/c"])
def test_a_model_that_is_nowhere(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"{spec!r} is neither a directory, nor a shipped model" in refusal(spec)


def test_a_file_is_no_model(folder: Path) -> None:
    assert "is a file; give the directory" in refusal(folder / WEIGHTS)


def test_a_hub_id_is_taken_from_the_local_cache_and_its_absence_said(folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "home" / "hub" / "models--someone--tiny-llama"
    shutil.copytree(folder, repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    script = (
        "from stepwell.models.loader import ModelLoadError, open_model\n"
        "opened = open_model('someone/tiny-llama')\n"
        "print(opened.name, opened.config.num_layers)\n"
        "try:\n    open_model('someone/else')\n"
        "except ModelLoadError as error:\n    print(error)\n"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    first, rest = done.stdout.split("\n", 1)
    assert first == "tiny-llama 1"
    assert "model: 'someone/else' cannot be fetched from the hub" in rest
    assert "check name and network" in rest
