"""What is sent to a model of images: seeded noise of the size it wants, or the files of a folder."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepwell.serving.grpc.load_wire import ImageTensor
from stepwell.serving.grpc.tensors import BYTES, TensorSpec, encode

SUFFIXES = (".png", ".jpg", ".jpeg")
NUM_MADE_UP = 64
"""Different images of noise; more requests begin again with the first."""
_FILE_INPUT = "image"


@dataclass(frozen=True)
class Pictures:
    """Images for one input of a model. Requests take turns with them."""

    tensor: TensorSpec
    """The input; -1 = variable."""
    height: int = 0
    width: int = 0
    files: tuple[str, ...] = ()
    """Paths, sent as they are; empty = noise."""
    seed: int = 0

    def tensors(self) -> Iterator[ImageTensor]:
        """All of them, one at a time. Raises ValueError if a file cannot be read."""
        one = (1,) * (len(self.tensor.shape) - 3)
        if not self.files:
            rng = np.random.default_rng(self.seed)
            shape = (*one, 3, self.height, self.width)
            for _ in range(NUM_MADE_UP):
                values = rng.standard_normal(shape, np.float32)
                yield ImageTensor(self.tensor.name, "FP32", shape, encode("FP32", values))
        for path in self.files:
            try:
                data = Path(path).read_bytes()
            except OSError as error:
                raise ValueError(f"images: cannot be read, got {path} ({error}); leave it out") from error
            yield ImageTensor(self.tensor.name, BYTES, (1,) * len(self.tensor.shape), encode(BYTES, [data]))


def takes_images(inputs: Mapping[str, TensorSpec]) -> bool:
    """Whether a model with these inputs wants images."""
    return _pixels(inputs) is not None


def made_up(inputs: Mapping[str, TensorSpec], size: tuple[int, int] | None, seed: int) -> Pictures:
    """Noise for a model with these inputs; ``size``: height and width, for one whose metadata leaves them open.

    Raises ValueError if nobody says them.
    """
    spec = _pixels(inputs)
    assert spec is not None, "asked before"
    height, width = size if min(spec.shape[-2:]) < 1 and size else spec.shape[-2:]
    if min(height, width) < 1:
        raise ValueError(
            f"image size: left open by the model, {spec.name} has shape {list(spec.shape)}; give --image-size HxW"
        )
    return Pictures(spec, height, width, seed=seed)


def from_folder(inputs: Mapping[str, TensorSpec], folder: Path, seed: int) -> Pictures:
    """The PNG and JPEG files of a folder, shuffled. Raises ValueError if there are none or the model takes no files."""
    spec = inputs.get(_FILE_INPUT)
    if spec is None or spec.datatype != BYTES:
        raise ValueError(
            f"images: the model takes no files (an input {_FILE_INPUT!r} of {BYTES}), got inputs {sorted(inputs)}; "
            "leave --images out to send noise"
        )
    files = sorted(str(path) for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"images: no PNG or JPEG file in {folder}; give a folder that has some")
    random.Random(seed).shuffle(files)
    return Pictures(spec, files=tuple(files), seed=seed)


def _pixels(inputs: Mapping[str, TensorSpec]) -> TensorSpec | None:
    return next(
        (
            spec
            for spec in inputs.values()
            if spec.datatype == "FP32" and len(spec.shape) in (3, 4) and spec.shape[-3] == 3
        ),
        None,
    )
