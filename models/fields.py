"""Fields of a Hugging Face ``config.json``, each checked as it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float32}
_LARGEST_SIZE = 2**24
"""No model has so many of anything; a corrupted file may, and would ask for terabytes."""


class ConfigError(ValueError):
    """A ``config.json`` that is not a model this runtime can run. The message names the field and the remedy."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError."""
    document = read_any_json(path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(document).__name__}; restore the file")
    return document


def read_any_json(path: Path) -> Any:
    """The JSON value in a file. Raises ConfigError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}); restore the file") from error


def read_size(document: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    """A count of at least ``least``; ``default`` stands for a field that is not there or null. Raises ConfigError."""
    value = document.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST_SIZE:
        raise ConfigError(f"{key}: expected a whole number in {least}..{_LARGEST_SIZE}, got {value!r}")
    return value


def positive(where: str, value: Any) -> float:
    """``value`` if it is a finite number above 0. Raises ConfigError naming the field ``where``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 < value < math.inf:
        raise ConfigError(f"{where}: expected a number > 0, got {value!r}")
    return float(value)


def read_flag(document: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A switch; ``default`` stands for a field that is not there or null. Raises ConfigError."""
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{key}: expected true or false, got {value!r}")
    return default if value is None else value


def read_dtype(document: Mapping[str, Any]) -> torch.dtype:
    """The precision to run in: the stored one, but float32 for float16 (CPUs have no fast path for it, and float32
    holds its values exactly). Raises ConfigError."""
    value = document.get("dtype") or document.get("torch_dtype") or "float32"
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype: {value!r} is not supported; use one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
