"""Text encoders over packed batches: one implementation, what differs between families is configuration."""

from pathlib import Path

import torch

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.loading import load_encoder
from stepwell.models.encoder.model import Encoder

__all__ = ["Encoder", "EncoderConfig", "load_encoder", "load_model", "read_config"]


def read_config(directory: Path) -> EncoderConfig:
    """See :class:`~stepwell.models.registry.PredictorPackage`."""
    return EncoderConfig.from_directory(directory)


def load_model(directory: Path, config: EncoderConfig, dtype: torch.dtype) -> Encoder:
    """See :class:`~stepwell.models.registry.PredictorPackage`."""
    return load_encoder(directory, config, dtype)
