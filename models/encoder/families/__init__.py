"""The families of encoders, one file each, imported on use: a configuration reader and a table of names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepwell.models.fields import ConfigError

if TYPE_CHECKING:
    from stepwell.models.encoder.family import Family

ENCODER_TYPES: Mapping[str, str] = {
    "albert": "albert",
    "bert": "bert",
    "camembert": "roberta",
    "distilbert": "distilbert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
}
"""``model_type`` of ``config.json`` -> the module here whose ``FAMILY`` it is."""


def family_of(model_type: Any) -> Family:
    """The family of a ``model_type``. Raises ConfigError naming the choices."""
    if not isinstance(model_type, str) or model_type not in ENCODER_TYPES:
        raise ConfigError(f"model_type: {model_type!r} is not supported; use one of {', '.join(ENCODER_TYPES)}")
    family: Family = import_module(f"{__name__}.{ENCODER_TYPES[model_type]}").FAMILY
    return family
