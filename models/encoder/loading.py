"""An encoder from a directory in Hugging Face's layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.families import family_of
from stepwell.models.encoder.model import Encoder
from stepwell.models.weights import fill


def load_encoder(directory: Path, config: EncoderConfig | None = None, dtype: torch.dtype | None = None) -> Encoder:
    """The encoder of ``directory`` with its weights.

    Args:
        directory: ``config.json``, ``model.safetensors`` (or an index and shards); optionally what
            sentence-transformers adds, its Dense layers in folders of their own.
        config: what :meth:`EncoderConfig.from_directory` gave, if it was read before.
        dtype: precision to run in; None = the one ``config.json`` states.

    Raises ConfigError or ModelLoadError naming the file, the field and the remedy.
    """
    config = config or EncoderConfig.from_directory(directory)
    names = family_of(config.model_type).names
    with torch.device("meta"):
        encoder = Encoder(config)
    dtype = dtype or config.dtype
    # Each has a file of its own, in its folder.
    projections, encoder.projections = encoder.projections, nn.ModuleList()
    fill(encoder, directory, dtype, config.model_type, lambda name: names.translate(name, config))
    for projection, stated in zip(projections, config.projections, strict=True):
        fill(projection, directory / stated.folder, dtype, "Dense", lambda name: name)
    encoder.projections = projections
    return encoder.requires_grad_(False).eval()
