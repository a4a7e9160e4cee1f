"""Element-wise activations by the names configurations use; oneDNN applies each within a product."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """One function, twice: as torch runs it alone, and as oneDNN runs it on the result of a product."""

    apply: Callable[[Tensor], Tensor]
    fused: tuple[str, str]
    """oneDNN's name and algorithm."""


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_TANH_GELU = Activation(_tanh_gelu, ("gelu", "tanh"))

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": Activation(F.gelu, ("gelu", "none")),
    "gelu_new": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "relu": Activation(F.relu, ("relu", "")),
    "silu": Activation(F.silu, ("swish", "")),
    "swish": Activation(F.silu, ("swish", "")),
    "tanh": Activation(torch.tanh, ("tanh", "")),
}
