"""Builds frozen dataclasses from parsed YAML, checking every key, type and range with the path of the field."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the field, the value and the remedy."""


def at_least(low: float, high: float = math.inf, *, exclusive: bool = False) -> dict[str, Any]:
    """Field metadata: a number in [low, high], or (low, high] if ``exclusive``."""
    return {"low": low, "high": high, "exclusive": exclusive}


def ratio() -> dict[str, Any]:
    """Field metadata: a number in (0, 1]."""
    return at_least(0.0, 1.0, exclusive=True)


def choice(*values: str) -> dict[str, Any]:
    """Field metadata: one of ``values``."""
    return {"choices": values}


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Parse a YAML file whose top level is a mapping. Raises ConfigError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error}); correct the file or the path") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top level, got {type(document).__name__}")
    return document


def build(cls: type[T], document: Any, path: str) -> T:
    """Mapping -> dataclass ``cls``; ``path`` (e.g. ``models[0]``) prefixes field names in errors."""
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path or 'top level'}: expected 'key: value' lines, got {document!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in document:
        if key not in fields:
            raise ConfigError(f"{_join(path, key)}: unknown key; {suggest(str(key), fields)}")
    hints = get_type_hints(cls)
    values = {key: _convert(_join(path, key), value, hints[key], fields[key]) for key, value in document.items()}
    for name, spec in fields.items():
        if name not in values and spec.default is spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(path, name)}: missing; give a value")
    return cls(**values)


def suggest(key: str, known: Any) -> str:
    """``did you mean X? known are [...]`` for an unknown ``key``."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known are {sorted(known)}"


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _convert(path: str, value: Any, hint: Any, spec: dataclasses.Field[Any]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else _convert(path, value, inner, spec)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: expected a list, got {value!r}")
        return tuple(_convert(f"{path}[{i}]", item, args[0], spec) for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected 'name: ...' lines, got {value!r}")
        return {str(key): _convert(_join(path, key), item, args[1], spec) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return build(hint, {} if value is None else value, path)  # type: ignore[arg-type]
    return _scalar(path, value, hint, spec.metadata)


def _scalar(path: str, value: Any, kind: type, rules: Mapping[str, Any]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        raise ConfigError(f"{path}: expected {name}, got {value!r}")
    if "choices" in rules and value not in rules["choices"]:
        raise ConfigError(f"{path}: expected one of {list(rules['choices'])}, got {value!r}")
    if "low" in rules and not _in_range(value, rules):
        open_bracket = "(" if rules["exclusive"] else "["
        raise ConfigError(f"{path}: expected a number in {open_bracket}{rules['low']}, {rules['high']}], got {value!r}")
    return value


def _in_range(value: Any, rules: Mapping[str, Any]) -> bool:
    if not math.isfinite(value):
        return False
    return bool(rules["low"] < value if rules["exclusive"] else rules["low"] <= value) and bool(value <= rules["high"])
