"""The weight files of a checkpoint: every tensor goes to the module that it belongs to, checked, or is refused.

Weights are read from safetensors only. A checkpoint in a pickle format is refused: unpickling runs code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class ModelLoadError(ValueError):
    """A model that cannot be opened. The message names the file, the field and the remedy."""


NameOf = Callable[[str], str | tuple[str, ...] | None]
"""A checkpoint's name of a tensor -> the module's name of it, or None (or no name) for one that the model has no use
for. Several names: the tensor is these, one below the other, in equal parts."""


def fill(module: nn.Module, directory: Path, dtype: torch.dtype, model_type: str, name_of: NameOf) -> None:
    """Give ``module``, built on the meta device, the weights of a checkpoint.

    Args:
        module: its parameters say which tensors there must be, and their shapes.
        directory: holds ``model.safetensors`` or an index and its shards.
        dtype: precision the weights are kept in.
        model_type: for messages.
        name_of: a tensor whose name it gives that the module does not have is refused.

    Raises ModelLoadError naming the file, the tensor and the remedy.
    """
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    weights: dict[str, torch.Tensor] = {}
    for file, stored_name, tensor in read_tensors(directory):
        found = name_of(stored_name)
        names = (found,) if isinstance(found, str) else found or ()
        parts = tensor.tensor_split(len(names)) if len(names) > 1 else [tensor] * len(names)
        for name, part in zip(names, parts, strict=True):
            if name not in shapes:
                raise ModelLoadError(
                    f"{file}: unexpected tensor {stored_name}; config.json (model_type {model_type}) has no such part"
                )
            _check_tensor(file, stored_name, part, shapes[name])
            # A copy: the file stays mapped otherwise, and cutting it short would kill the process.
            weights[name] = part.to(dtype, copy=True)
    if missing := shapes.keys() - weights.keys():
        raise ModelLoadError(
            f"{directory}: {len(missing)} tensors are missing, the first is {min(missing)}; fetch all files of the "
            "checkpoint, or correct config.json"
        )
    module.load_state_dict(weights, assign=True)


def _check_tensor(file: Path, name: str, tensor: torch.Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ModelLoadError(
            f"{file}: {name} has shape {list(tensor.shape)}, config.json implies {list(shape)}; weights and "
            "configuration are not of the same model"
        )
    if not tensor.is_floating_point():
        raise ModelLoadError(f"{file}: {name} is {tensor.dtype}; give weights in a floating point type, not quantised")


def read_tensors(directory: Path) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """File, name and value of every tensor of a checkpoint. Raises ModelLoadError."""
    for file in _weight_files(directory):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    yield file, name, tensors.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelLoadError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(index)
    if pickles := sorted(p.name for p in directory.iterdir() if p.suffix in PICKLE_SUFFIXES):
        raise ModelLoadError(
            f"{directory}: {pickles[0]} is a pickle, which can run code when read; convert the checkpoint to "
            f"safetensors ({WEIGHTS_FILE})"
        )
    raise ModelLoadError(f"{directory}: no {WEIGHTS_FILE} and no {INDEX_FILE}; add the weights")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelLoadError(f"{index}: no valid 'weight_map' ({error}); fetch the file again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise ModelLoadError(f"{index}: weight_map names {name!r}, which is not a file beside it; fetch all shards")
    return [index.parent / name for name in names]
