"""From the hidden states of a text's tokens to one embedding, as sentence-transformers lays it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.encoder.batch import TextBatch
from stepwell.models.fields import ConfigError, read_any_json, read_json

PoolingMode = Literal["mean", "cls"]


@dataclass(frozen=True)
class Pooling:
    """How hidden states become an embedding."""

    mode: PoolingMode = "mean"
    """Mean over the tokens, or the first token's state."""
    normalise: bool = False
    """Divide by the L2 norm."""

    def __call__(self, x_TD: Tensor, batch: TextBatch) -> Tensor:
        """Hidden states [T, D] -> embeddings [texts, D], float32."""
        embeddings_ND = pool(x_TD, batch, self.mode).float()
        return F.normalize(embeddings_ND, dim=-1) if self.normalise else embeddings_ND


def pool(x_TD: Tensor, batch: TextBatch, mode: PoolingMode) -> Tensor:
    """One row a text: [T, D] -> [texts, D]; means are float32."""
    if mode == "cls":
        return x_TD[batch.first_rows]
    return torch.stack([x_TD[rows].float().mean(0) for rows in batch.rows])


def read_pooling(directory: Path) -> Pooling:
    """The pooling that ``modules.json`` and its modules' files describe; the default if there is no such file.

    Raises ConfigError naming the file, the field and the remedy.
    """
    file = directory / "modules.json"
    if not file.is_file():
        return Pooling()
    modules = read_any_json(file)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ConfigError(f"{file}: expected a list of modules, got {modules!r}; restore the file")
    pooling = Pooling()
    for index, module in enumerate(modules):
        kind, folder = str(module.get("type")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Pooling":
            pooling = Pooling(_read_mode(directory / folder / "config.json"))
        elif kind == "Normalize":
            pooling = Pooling(pooling.mode, normalise=True)
        elif kind != "Transformer" or folder:
            raise ConfigError(
                f"{file}: [{index}]: module {module.get('type')!r} at path {folder!r} is not supported; supported are "
                "a Transformer at the top of the directory, a Pooling and a Normalize"
            )
    return pooling


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
