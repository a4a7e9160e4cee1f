"""How a model wants its images: ``preprocessor_config.json`` of a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREPROCESSOR_FILE = "preprocessor_config.json"
_HALF = (0.5, 0.5, 0.5)


class ImageInputError(ValueError):
    """A preprocessor configuration that cannot be used. The message names the field and the remedy."""


@dataclass(frozen=True)
class ImageInput:
    """Size and normalisation: ``(pixel / 255 - mean) / std`` for each of the three colours."""

    height: int
    width: int
    mean: tuple[float, float, float] = _HALF
    std: tuple[float, float, float] = _HALF

    @classmethod
    def from_directory(cls, directory: Path, height: int, width: int) -> ImageInput:
        """As the model's files say; without any, of the given size, from -1 to 1. Raises ImageInputError."""
        path = directory / PREPROCESSOR_FILE
        document: Any = {}
        if path.is_file():
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise ImageInputError(f"{path}: not readable as JSON ({error}); fetch the file again") from error
        if not isinstance(document, Mapping):
            raise ImageInputError(f"{path}: expected an object, got {type(document).__name__}; fetch the file again")
        mean, std = (_colours(path, document, key) for key in ("image_mean", "image_std"))
        if min(std) <= 0.0:
            raise ImageInputError(f"{path}: image_std must be > 0, got {list(std)}; fetch the file again")
        return cls(*_size(path, document, height, width), mean, std)


def _colours(path: Path, document: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    value = document.get(key, _HALF)
    numbers = isinstance(value, Sequence) and all(isinstance(each, (int, float)) for each in value)
    if not numbers or len(value) != 3:
        raise ImageInputError(f"{path}: {key} must be three numbers, got {value!r}; fetch the file again")
    return float(value[0]), float(value[1]), float(value[2])


def _size(path: Path, document: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """What is cropped counts, else what is resized to; a size by the shortest edge says nothing of the other one."""
    size = document.get("crop_size") if document.get("do_center_crop") else document.get("size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if not isinstance(size, Mapping) or not {"height", "width"} <= size.keys():
        return height, width
    found = size["height"], size["width"]
    if not all(isinstance(each, int) and 0 < each <= 8192 for each in found):
        raise ImageInputError(f"{path}: size must be whole numbers up to 8192, got {dict(size)}; fetch the file again")
    return found
