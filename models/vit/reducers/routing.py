"""``route``: in every layer a gate chooses the tokens that run it; the others pass it by (DiT: arXiv 2308.03409).

The gate of layer l gives token i the score g_i = gate_l(LN(x_i)) and the probability p_i = sigmoid(g_i + b_l + c_l *
logit(s_l)) of running, where s_l is the share of patches that the layer runs at the budget. At serving time the s_l N
highest scores run: among themselves they attend and go through the FFN, gathered, and are put back where they were.
What a layer does not run costs nothing in it, stays bit for bit as it is, and may run a later one. Prefix tokens always
run. The share of a layer is min(1, c * profile_l) with one c that meets the budget.

In training p_i are made binary by Gumbel noise, the k highest of g_i + noise run, and gradients pass straight through:
m_i = 1 + p_i - stopgrad(p_i) multiplies what the layer adds to the token, and the weight that others attend to it with.
:attr:`Routing.expected_shares` is for the loss that keeps p at the budget.

Three differences from the paper, whose code was never released. Its gate is a linear projection; here it has a hidden
layer, because what tells an empty patch, contrast, has no sign in the patch embedding. Its probabilities decide at
serving time too, so that the cost is met on average; here the budget is met by every image. And only its row gates are
here: the scaling path (column gates that send a token down to a coarser grid) needs a pyramid of feature maps, which
a plain ViT does not have, and is not implemented; nor is its early stop: a token that was passed by may come back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.fields import ConfigError, positive, read_size
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import LayerTokens, Pass, Reducer, Schedule, Trace

if TYPE_CHECKING:
    from stepwell.models.vit.config import ViTConfig


class Gate(nn.Module):
    """Scores of tokens, and the probabilities that belong to them at a budget."""

    def __init__(self, size: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps)
        self.fc1, self.fc2 = nn.Linear(size, hidden), nn.Linear(hidden, 1)
        self.offset, self.slope = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Scores [B, N]."""
        scores: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x_BND)))).squeeze(-1)
        return scores

    def probabilities(self, scores_BN: Tensor, share: float) -> Tensor:
        """Probability of running [B, N] where the layer runs that share of the patches, in (0, 1)."""
        logits: Tensor = scores_BN + self.offset + self.slope * math.log(share / (1.0 - share))
        return logits.sigmoid()


class Routing(Reducer):
    """See the module. ``config.json``::

    "reducers": {"route": {"hidden_size": 24, "profile": [1.0, 0.8, ...]}}

    ``profile``: one number a layer, none larger than the one before; absent = all layers run alike.
    """

    def __init__(self, config: ViTConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.profile = _read_profile(settings, config.num_layers)
        hidden = read_size(settings, "hidden_size", max(1, config.hidden_size // 4))
        self.gates = nn.ModuleList(Gate(config.hidden_size, hidden, config.norm_eps) for _ in range(config.num_layers))
        self.noise = 0.0
        """How much of a standard Gumbel difference is added to scores in training mode."""
        self.expected_shares: list[tuple[Tensor, float]] = []
        """In training mode, of the last run: each routing layer's mean probability, and the share it should be."""

    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        return _schedule(self.profile[:num_layers], grid, budget)

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        self.expected_shares = []
        return _Route(self, grid, self.schedule(grid, num_layers, budget))


class _Route(Pass):
    """Tokens that run are gathered before a layer and put back after it."""

    def __init__(self, routing: Routing, grid: Grid, schedule: Schedule) -> None:
        super().__init__(grid)
        self.routing, self.tokens = routing, schedule
        self._all: Tensor | None = None
        self._index_BT: Tensor | None = None
        self._open_BT: Tensor | None = None

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        count = self.tokens[layer].attention - self.grid.num_prefix
        if count == self.grid.num_patches:
            self._all = self._index_BT = self._open_BT = None
            return x_BTD
        chosen_BK = self._choose(layer, x_BTD[:, self.grid.num_prefix :], count) + self.grid.num_prefix
        prefix = torch.arange(self.grid.num_prefix).expand(len(x_BTD), -1)
        self._all, self._index_BT = x_BTD, torch.cat([prefix, chosen_BK], 1)
        return _gather(x_BTD, self._index_BT)

    def after_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if self._all is None or self._index_BT is None:
            return x_BTD
        if self._open_BT is not None:
            before = _gather(self._all, self._index_BT)
            x_BTD = before + self._open_BT[..., None] * (x_BTD - before)
        index = self._index_BT[..., None].expand_as(x_BTD)
        # In place: the packed rows that these are a view of were replaced by those of the gathered tokens.
        if torch.is_grad_enabled():
            return self._all.scatter(1, index, x_BTD)
        return self._all.scatter_(1, index, x_BTD)

    def _choose(self, layer: int, patches_BND: Tensor, count: int) -> Tensor:
        """Patches that run [B, count], ascending."""
        gate = self.routing.gates[layer]
        assert isinstance(gate, Gate)
        scores_BN = gate(patches_BND)
        if not self.routing.training:
            return _highest(scores_BN, count)
        chosen = _highest(scores_BN + self.routing.noise * _logistic_like(scores_BN), count)
        share = min(max(count, 0.5), self.grid.num_patches - 0.5) / self.grid.num_patches
        p_BN = gate.probabilities(scores_BN, share)
        self.routing.expected_shares.append((p_BN.mean(), share))
        p_BK = p_BN.gather(1, chosen)
        self._open_BT = F.pad(1.0 + p_BK - p_BK.detach(), (self.grid.num_prefix, 0), value=1.0)
        return chosen

    @property
    def sizes_BT(self) -> Tensor | None:
        return self._open_BT

    def trace(self, num_items: int) -> Trace:
        trace = super().trace(num_items)
        if self._index_BT is None:
            return trace
        ran = torch.zeros(num_items, self.grid.num_tokens, dtype=torch.bool).scatter(1, self._index_BT, True)
        return Trace(trace.owner, ran[:, self.grid.num_prefix :])


def _gather(x_BTD: Tensor, index_BK: Tensor) -> Tensor:
    return x_BTD.gather(1, index_BK[..., None].expand(-1, -1, x_BTD.shape[2]))


def _highest(scores_BN: Tensor, count: int) -> Tensor:
    """Indices of the highest scores [B, count], ascending."""
    indices: Tensor = scores_BN.topk(count, dim=1).indices.sort(dim=1).values
    return indices


def _logistic_like(x: Tensor) -> Tensor:
    """The difference of two Gumbel variables, of which one belongs to running and one to passing by."""
    return torch.rand_like(x).clamp(1e-6, 1.0 - 1e-6).logit()


@lru_cache(maxsize=1024)
def _schedule(profile: tuple[float, ...], grid: Grid, budget: float) -> Schedule:
    """The largest shares that are proportional to ``profile`` and within the budget: by bisection over the counts."""
    left = int(budget * len(profile) * grid.num_tokens + 1e-9) - len(profile) * grid.num_prefix
    low, high = 0, max(1, math.ceil(grid.num_patches / min(profile, default=1.0)))
    factors = 64  # finer than a patch, so that few tokens of the budget are left
    low, high = low * factors, high * factors
    while low < high:
        middle = (low + high + 1) // 2
        if sum(_counts(profile, grid, middle / factors)) <= left:
            low = middle
        else:
            high = middle - 1
    counts = [max(count, 1) for count in _counts(profile, grid, low / factors)]
    return tuple(LayerTokens(count + grid.num_prefix, count + grid.num_prefix) for count in counts)


def _counts(profile: Sequence[float], grid: Grid, factor: float) -> list[int]:
    return [min(grid.num_patches, int(factor * weight)) for weight in profile]


def _read_profile(settings: Mapping[str, Any], num_layers: int) -> tuple[float, ...]:
    profile = settings.get("profile", [1.0] * num_layers)
    if not isinstance(profile, (list, tuple)) or len(profile) != num_layers:
        raise ConfigError(f"reducers.route.profile: expected {num_layers} numbers, one a layer, got {profile!r}")
    weights = tuple(positive(f"reducers.route.profile[{i}]", weight) for i, weight in enumerate(profile))
    if any(later > earlier for earlier, later in pairwise(weights)):
        raise ConfigError(f"reducers.route.profile: no number may be larger than the one before, got {profile!r}")
    return weights
