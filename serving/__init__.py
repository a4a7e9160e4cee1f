"""Serving: engine, protocols, configuration, metrics. Public names: :class:`Client` and :class:`Engine`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell.serving.client import Client
    from stepwell.serving.offline import Engine

__all__ = ["Client", "Engine"]

# Imported on first use: a client must not import torch.
_MODULES = {"Client": "stepwell.serving.client", "Engine": "stepwell.serving.offline"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
