"""What a token reducer is: a schedule, and what it does to the tokens between the sub-layers of a network.

A reducer is a module of the model, so that a trained one has its weights in the checkpoint (``reducers.NAME.*``). For
every group of items with the same shape, sub-network and budget the model asks it for a :class:`Pass`, which sees the
tokens of the group as [items, tokens, D] at three places of each layer and may return more or fewer of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers import TRAINED, TRAINING_FREE

if TYPE_CHECKING:
    from stepwell.models.vit.config import ViTConfig


class LayerTokens(NamedTuple):
    """Tokens of one item, prefix included, that run each sub-layer of one layer."""

    attention: int
    ffn: int


Schedule = tuple[LayerTokens, ...]
"""What each layer runs, from the first on."""


def mean_share(schedule: Schedule, num_tokens: int) -> float:
    """Tokens that a layer runs, averaged over layers and sub-layers, as a share of ``num_tokens``: the budget met."""
    return sum(map(sum, schedule)) / (2 * len(schedule) * num_tokens) if schedule else 1.0


@dataclass(frozen=True)
class Trace:
    """Where the patches of each item of a group are in the layer that ran last."""

    owner: Tensor
    """int64 [items, patches]: index of the token that a patch is (most) part of, among those that ran; -1 = dropped.
    For tokens that skip the layer: their index among all."""
    ran: Tensor
    """bool [items, patches]: whether that token ran the layer."""


class Pass:
    """The way of one group of items through the layers. As it stands: nothing is reduced.

    Tokens arrive as [items, tokens, D] and may be views of a buffer that the layers go on to write to: what is kept
    while the same tokens are returned must be copied. Layers at or beyond the sub-network's depth are not passed.
    """

    wants_keys = False
    """Whether :meth:`between` needs the keys."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        """Tokens that ``layer`` is to run."""
        return x_BTD

    def between(self, layer: int, x_BTD: Tensor, keys_BTd: Tensor | None) -> Tensor:
        """Tokens that the FFN of ``layer`` is to run, from those after its attention. ``keys``: the mean of the
        attention's keys over the heads that ran; None if none ran."""
        return x_BTD

    def after_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        """Tokens as they leave ``layer``."""
        return x_BTD

    @property
    def sizes_BT(self) -> Tensor | None:
        """Patches in each token, where that varies: attention is proportional to it (logits + log size; ToMe)."""
        return None

    def restore(self, x_BTD: Tensor) -> Tensor:
        """All tokens of the grid [items, num_tokens, D], from those that left a layer: for outputs of every patch."""
        assert x_BTD.shape[1] == self.grid.num_tokens, "tokens are missing at the end, and nobody can restore them"
        return x_BTD

    def trace(self, num_items: int) -> Trace:
        """Of the layer that ran last."""
        patches = torch.arange(self.grid.num_prefix, self.grid.num_tokens).expand(num_items, -1)
        return Trace(patches, torch.ones_like(patches, dtype=torch.bool))


class Reducer(nn.Module, ABC):
    """A way of running fewer tokens at any budget in (0, 1]."""

    restores_patches = True
    """Whether every patch has a token at the end (:meth:`Pass.restore`), as outputs of every pixel need."""

    def __init__(self, config: ViTConfig, settings: Mapping[str, Any]) -> None:
        """``settings``: what ``config.json`` says of it under ``reducers``; may be empty for a training-free one."""
        super().__init__()
        self.hidden_size, self.head_dim = config.hidden_size, config.head_dim

    @abstractmethod
    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        """Tokens each of ``num_layers`` layers runs: no more in total than ``budget`` allows, unless fewer cannot be
        had, and no fewer in total than at a smaller budget. A function of its arguments alone."""

    @abstractmethod
    def own_products(self, grid: Grid, num_layers: int, budget: float) -> int:
        """Multiply-adds that the published method itself takes for one image, beside the layers: its products with
        features and with its own weights. What an implementation computes in vain is not counted."""

    @abstractmethod
    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        """A new pass of one group through ``num_layers`` layers, which keeps to :meth:`schedule`."""


def build_reducers(config: ViTConfig) -> nn.ModuleDict:
    """The reducers that a model has, by name."""
    settings: dict[str, Mapping[str, Any]] = {**{name: {} for name in TRAINING_FREE}, **config.reducer_settings}
    return nn.ModuleDict({name: _class(name)(config, settings[name]) for name in sorted(settings)})


def _class(name: str) -> type[Reducer]:
    module, _, kind = {**TRAINING_FREE, **TRAINED}[name].partition(":")
    found: type[Reducer] = getattr(import_module(module), kind)
    return found
