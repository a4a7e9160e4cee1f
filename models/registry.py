"""Which package runs a model of which type. Imported on use: a new family is one more line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from stepwell.models.config import DECODER_TYPES
from stepwell.models.fields import ConfigError
from stepwell.models.one_shot import OneShotConfig, OneShotModel

_ENCODER, _VIT = "stepwell.models.encoder", "stepwell.models.vit"
PREDICTORS: Mapping[str, str] = {
    "albert": _ENCODER,
    "bert": _ENCODER,
    "camembert": _ENCODER,
    "deberta": _ENCODER,
    "deberta-v2": _ENCODER,
    "distilbert": _ENCODER,
    "modernbert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "deit": _VIT,
    "dinov2": _VIT,
    "dpt": _VIT,
    "segformer": _VIT,
    "timm": _VIT,
    "vit": _VIT,
}
"""``model_type`` of ``config.json`` -> package, of models that answer as a whole."""


class PredictorPackage(Protocol):
    """What such a package offers."""

    def read_config(self, directory: Path) -> OneShotConfig:
        """Raises ValueError naming the file, the field and the remedy."""

    def load_model(self, directory: Path, config: OneShotConfig, dtype: torch.dtype) -> OneShotModel:
        """Raises ValueError naming the file, the field and the remedy."""


def type_of(document: Mapping[str, Any]) -> object:
    """The model's type, from its parsed ``config.json``; timm's files state an architecture instead."""
    return document.get("model_type") or ("timm" if "pretrained_cfg" in document else None)


def predictor_package(model_type: object) -> PredictorPackage | None:
    """The package that runs models of this type; None for a decoder. Raises ConfigError if there is none."""
    if model_type in DECODER_TYPES:
        return None
    if model_type not in PREDICTORS:
        known = ", ".join(sorted({*DECODER_TYPES, *PREDICTORS}))
        raise ConfigError(f"model_type: {model_type!r} is not supported; use one of {known}")
    return cast("PredictorPackage", import_module(PREDICTORS[str(model_type)]))
