"""Open a model by directory, shipped name or hub id: configuration, weights, tokenizer and ladders, all checked.

Weights are read from safetensors only. A checkpoint in a pickle format is refused: unpickling runs code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file

from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.models.fields import ConfigError, read_json
from stepwell.models.image_input import ImageInput
from stepwell.models.ladder import LADDER_FILE, LadderSet, load_ladders, unmeasured_ladders
from stepwell.models.one_shot import OneShotConfig, OneShotModel
from stepwell.models.registry import predictor_package, type_of
from stepwell.models.tokenizer import Tokenizer
from stepwell.models.weights import WEIGHTS_FILE, ModelLoadError, fill

__all__ = [
    "LoadedModel",
    "ModelFiles",
    "ModelLoadError",
    "load_weights",
    "open_model",
    "read_files",
    "save_checkpoint",
    "shipped_models",
]

_HUB_FILES = ["*.json", "*.safetensors"]


@dataclass(frozen=True)
class ModelFiles:
    """All that a model's files say, but for its weights."""

    name: str
    path: Path
    config: DecoderConfig | OneShotConfig
    tokenizer: Tokenizer | None
    """None if the checkpoint has no ``tokenizer.json``: then it takes and gives token ids only."""
    ladders: LadderSet
    image_input: ImageInput | None
    """How it wants its images; None if it takes none."""


@dataclass(frozen=True)
class LoadedModel(ModelFiles):
    """A decoder ready to run."""

    config: DecoderConfig
    decoder: Decoder


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    folder = Path(str(resources.files("stepwell.models"))) / "shipped"
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def open_model(spec: str, dtype: torch.dtype | None = None) -> LoadedModel:
    """Open a decoder.

    Args:
        spec: a directory in Hugging Face layout, a shipped name (:func:`shipped_models`) or a hub id (``owner/name``).
        dtype: precision to run in; None = the one ``config.json`` states.

    Raises ModelLoadError naming the file, the field, the value and the remedy.
    """
    return load_weights(read_files(spec), dtype)


def load_weights(files: ModelFiles, dtype: torch.dtype | None = None) -> LoadedModel:
    """The decoder of ``files`` with its weights, in ``dtype`` (None = the one ``config.json`` states)."""
    if not isinstance(files.config, DecoderConfig):
        what = f"model_type {files.config.model_type!r} generates no text"
        raise ModelLoadError(f"{files.path / 'config.json'}: {what}; give a decoder")
    decoder = _load_decoder(files.path, files.config, dtype or files.config.dtype)
    return LoadedModel(**vars(files), decoder=decoder)


def read_files(spec: str) -> ModelFiles:
    """Everything of a model but its weights; ``spec`` and errors as in :func:`open_model`."""
    directory = _locate(spec)
    try:
        config = _read_config(directory)
        tokenizer_file = directory / "tokenizer.json"
        tokenizer = Tokenizer.from_file(tokenizer_file) if tokenizer_file.is_file() else None
        if tokenizer and not isinstance(config, DecoderConfig) and config.truncates_texts:
            tokenizer.truncate(config.max_tokens)
        ladder_file = directory / LADDER_FILE
        architecture = config.architecture
        ladders = load_ladders(ladder_file, architecture) if ladder_file.is_file() else unmeasured_ladders(architecture)
        images = None if isinstance(config, DecoderConfig) else _image_input(directory, config)
    except ValueError as error:
        raise ModelLoadError(str(error)) from error
    return ModelFiles(Path(os.path.abspath(spec)).name, directory, config, tokenizer, ladders, images)


def load_predictor(files: ModelFiles, dtype: torch.dtype | None = None) -> OneShotModel:
    """The model of ``files``, which answers as a whole, with its weights in ``dtype`` (None = the one ``config.json``
    states). Raises ModelLoadError."""
    config = files.config
    assert not isinstance(config, DecoderConfig), "decoders generate"
    package = predictor_package(config.model_type)
    assert package is not None
    try:
        return package.load_model(files.path, config, dtype or config.dtype)
    except ModelLoadError:
        raise
    except ValueError as error:
        raise ModelLoadError(str(error)) from error


def _read_config(directory: Path) -> DecoderConfig | OneShotConfig:
    document = read_json(directory / "config.json")
    try:
        package = predictor_package(type_of(document))
    except ConfigError as error:
        raise ConfigError(f"{directory / 'config.json'}: {error}") from error
    return DecoderConfig.from_directory(directory) if package is None else package.read_config(directory)


def _image_input(directory: Path, config: OneShotConfig) -> ImageInput | None:
    return None if config.vocab_size else ImageInput.from_directory(directory, *config.image_size)


def save_checkpoint(directory: Path, decoder: Decoder, document: Mapping[str, Any]) -> None:
    """Write ``config.json`` (``document``, in Hugging Face's terms) and ``model.safetensors``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().contiguous() for name, tensor in decoder.state_dict().items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def _locate(spec: str) -> Path:
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(f"model: {spec!r} is a file; give the directory that holds config.json and the weights")
    if spec in shipped_models():
        return Path(str(resources.files("stepwell.models"))) / "shipped" / spec
    if spec.count("/") == 1 and not spec.startswith((".", "/", "~")):
        return _download(spec)
    raise ModelLoadError(
        f"model: {spec!r} is neither a directory, nor a shipped model ({', '.join(shipped_models())}), nor a hub id "
        "(owner/name)"
    )


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem = f"model: {hub_id!r} cannot be fetched from the hub ({error}); check name and network"
        raise ModelLoadError(problem) from error


def _load_decoder(directory: Path, config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    with torch.device("meta"):
        decoder = Decoder(config)

    def name_of(name: str) -> str | None:
        # Older checkpoints store the rotary frequencies, and tied ones may store the head a second time.
        is_spare = name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tied_embeddings)
        return None if is_spare else name

    fill(decoder, directory, dtype, config.model_type, name_of)
    decoder.rebuild_tables()
    return decoder.requires_grad_(False).eval()
