"""What sentence-transformers writes beside an encoder: how hidden states become an embedding, and how long texts are.

``modules.json`` lists the steps, each in a folder of its own; the first, the Transformer, is the encoder itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepwell.models.encoder.pooling import Pooling, PoolingMode
from stepwell.models.encoder.projection import ProjectionConfig
from stepwell.models.fields import ConfigError, read_any_json, read_flag, read_json, read_size

_LENGTH_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where the library looks for the Transformer's settings, in its order."""
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")


@dataclass(frozen=True)
class Sentences:
    """The layout of one directory."""

    pooling: Pooling = field(default_factory=Pooling)
    projections: tuple[ProjectionConfig, ...] = ()
    truncates: bool = False
    """The library made the directory: it cuts texts that are too long."""
    max_seq_length: int | None = None
    """Tokens, special ones included, that it cuts texts to; None = as many as the encoder takes."""


def read_sentences(directory: Path) -> Sentences:
    """The layout that ``modules.json`` and its modules' files describe; the default if there are no such files.

    Raises ConfigError naming the file, the field and the remedy.
    """
    file, lengths = directory / "modules.json", _length_file(directory)
    found = Sentences(truncates=file.is_file() or lengths is not None, max_seq_length=_max_seq_length(lengths))
    return _with_modules(found, file) if file.is_file() else found


def _with_modules(found: Sentences, file: Path) -> Sentences:
    modules = read_any_json(file)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ConfigError(f"{file}: expected a list of modules, got {modules!r}; restore the file")
    last = 0
    for index, module in enumerate(modules):
        kind, folder = str(module.get("type")).rpartition(".")[2], str(module.get("path", ""))
        if kind not in _ORDER or (kind == "Transformer") != (not folder) or _ORDER.index(kind) < last:
            raise ConfigError(
                f"{file}: [{index}]: module {module.get('type')!r} at path {folder!r} is not supported; supported are "
                "a Transformer at the top of the directory, then a Pooling, any Dense and a Normalize"
            )
        last = _ORDER.index(kind)
        if kind == "Pooling":
            found = replace(found, pooling=Pooling(_read_mode(file.parent / folder / "config.json")))
        elif kind == "Dense":
            found = replace(found, projections=(*found.projections, _read_dense(file.parent, folder)))
        elif kind == "Normalize":
            found = replace(found, pooling=replace(found.pooling, normalise=True))
    return found


def _length_file(directory: Path) -> Path | None:
    return next((file for name in _LENGTH_FILES if (file := directory / name).is_file()), None)


def _max_seq_length(file: Path | None) -> int | None:
    if file is None or (document := read_json(file)).get("max_seq_length") is None:
        return None
    try:
        return read_size(document, "max_seq_length")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _read_mode(file: Path) -> PoolingMode:
    modes = _modes(read_json(file))
    if modes == ["mean"]:
        return "mean"
    if modes == ["cls"]:
        return "cls"
    raise ConfigError(f"{file}: pooling {' and '.join(modes) or 'of no kind'} is not supported; use mean or cls")


def _modes(document: Mapping[str, Any]) -> list[str]:
    if isinstance(mode := document.get("pooling_mode"), str):
        return [mode]
    return [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in document.items()
        if key.startswith("pooling_mode_") and value
    ]


def _read_dense(directory: Path, folder: str) -> ProjectionConfig:
    file = directory / folder / "config.json"
    document = read_json(file)
    try:
        name = str(document.get("activation_function", "torch.nn.modules.activation.Tanh"))
        kind = name.rpartition(".")[2]
        if kind not in _ACTIVATIONS:
            raise ConfigError(f"activation_function: {name!r} is not supported; use one of {', '.join(_ACTIVATIONS)}")
        for key in ("module_input_name", "module_output_name"):
            if (value := document.get(key) or "sentence_embedding") != "sentence_embedding":
                raise ConfigError(f"{key}: only 'sentence_embedding' is supported, got {value!r}")
        return ProjectionConfig(
            folder,
            read_size(document, "in_features"),
            read_size(document, "out_features"),
            read_flag(document, "bias", default=True),
            _ACTIVATIONS[kind],
        )
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
