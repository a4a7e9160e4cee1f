"""The type that the weights of a model run in."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from stepwell.models.kernels.linear import can_pack
from stepwell.models.loader import ModelFiles
from stepwell.serving.config import ModelConfig

_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_log = logging.getLogger(__name__)


def run_dtype(config: ModelConfig, stated: torch.dtype) -> torch.dtype:
    """The type that the weights of a checkpoint run in, which states its own: with ``dtype: auto`` that, unless this
    processor has no instructions for it. Without them bfloat16 takes 4 times as long as float32."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    return stated if can_pack(stated) or not can_pack(torch.float32) else torch.float32


def say_dtype(config: ModelConfig, files: ModelFiles) -> torch.dtype:
    """The same for the model of ``files``; a line in the log says so if it is not the one that these state."""
    stated = files.config.dtype
    dtype = run_dtype(config, stated)
    if dtype != stated and config.dtype == "auto":
        _log.info("%s: runs in %s, this processor has no fast %s", files.name, dtype, stated)
    return dtype
