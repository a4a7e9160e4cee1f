"""``downsample``: gates choose which patches go on as one coarse token, and which stop (DiT: arXiv 2308.03409).

DiT gives each token two choices in every node of a grid of scales and depths: its row gate, whether the block runs it;
its column gate, whether it goes down to the next coarser scale. ``route`` has the first alone, this reducer both. Every
layer has a gate with a score g_i for token i. Where a layer runs fewer tokens than the one before it:

* In the layers listed under ``before`` its gate is a column gate. Tokens still running are taken together where their
  patches are in the same 2 x 2 neighbourhood, in order of the mean of the members' scores, lowest first, until as many
  are left as the layer runs. Of the last neighbourhood, only the members with the lowest scores join. If all
  neighbourhoods are down-sampled and there are still too many, the lowest stop.
* In other layers it is a row gate: the tokens with the lowest scores stop.

A coarse token is the mean of its members x_i, each counting as often as it stands for patches, and runs all layers that
follow in their place: four tokens cost one. Attention is proportional to the patches that a token stands for (ToMe), so
members that are equal lose nothing by joining. At the end each member gets what the layers added to the coarse token,
``x_i + (coarse_out - coarse_in)``; a token that stopped is bit for bit what it was. Prefix tokens always run alone.

DiT's code was never released. Where this departs from the paper: its scales have features of their own, made by the
learned patch embeddings of a pyramid (PVTv2), where a plain ViT has one grid, so here the scaling path is a mean, has
no weights, and goes from the patches to half their resolution and no further. There a token stays at the coarse scale;
here patches get their update back, so that outputs of every pixel are there. There each token's mask is drawn by itself
and the cost is met on average; here a neighbourhood decides together, and every image meets the budget to the token.

In training the choices are straight-through, as in ``routing``: with p = sigmoid(mean g + b + c * logit(share)) the
probability of staying fine, what the layer adds to a token is multiplied by 1 + p - stopgrad(p) if it stayed, and by
1 + (1 - p) - stopgrad(1 - p) if it is coarse. The tokens that these probabilities would run are for the budget loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.fields import ConfigError
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import Pass, Schedule, Trace
from stepwell.models.vit.reducers.gates import Gate, GatedReducer, GateRecord, logistic_like
from stepwell.models.vit.reducers.merging import merge
from stepwell.models.vit.reducers.neighbourhoods import Joining, join_lowest, mean_scores, quarters
from stepwell.models.vit.reducers.profile import read_layers
from stepwell.models.vit.reducers.rows import gather_rows

if TYPE_CHECKING:
    from stepwell.models.vit.config import ViTConfig

_KNOWN = {"before", "hidden_size", "profile"}


class Downsampling(GatedReducer):
    """See the module. ``config.json``::

    "reducers": {"downsample": {"before": [0, 2], "hidden_size": 24, "profile": [1.0, 0.8, ...]}}

    ``before``: layers whose gate down-samples; absent = all. ``profile``: tokens that each layer runs relative to the
    others, none more than the one before; absent = all alike.
    """

    def __init__(self, config: ViTConfig, settings: Mapping[str, Any]) -> None:
        if unknown := sorted(settings.keys() - _KNOWN):
            raise ConfigError(f"reducers.downsample.{unknown[0]}: unknown; known are {', '.join(sorted(_KNOWN))}")
        super().__init__(config, settings, "reducers.downsample")
        self.before = read_layers("reducers.downsample", settings, config.num_layers, range(config.num_layers))

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        self.records = []
        return _Downsample(self, grid, self.schedule(grid, num_layers, budget))


class _Event(NamedTuple):
    """Tokens that joined or stopped before a layer, prefix included."""

    tokens: Tensor
    """[B, T, D], as they were."""
    weights: Tensor
    """[B, T]: patches that each stood for; 0 = it stopped."""
    to: Tensor
    """int64 [B, T]: which token each went on as; -1 = it stopped."""
    num_left: int

    def run(self) -> tuple[Tensor, Tensor]:
        """The tokens that go on [B, num_left, D], and the patches that each stands for [B, num_left]."""
        return merge(self.tokens, self.weights, self.to.clamp_min(0), self.num_left)

    def undo(self, x_BTD: Tensor) -> Tensor:
        """The tokens there were, from those that they went on as: each is what it was, and what was added since."""
        to = self.to.clamp_min(0)
        now, start = gather_rows(x_BTD, to), gather_rows(self.run()[0], to)
        went_on = torch.where(self.joined[..., None], self.tokens + (now - start), now)
        return torch.where((self.to >= 0)[..., None], went_on, self.tokens)

    @property
    def joined(self) -> Tensor:
        """bool [B, T]: whether it shares the token it went on as."""
        return _share(self.to, self.num_left)


class _Downsample(Pass):
    def __init__(self, reducer: Downsampling, grid: Grid, schedule: Schedule) -> None:
        super().__init__(grid)
        self.reducer, self.tokens = reducer, schedule
        self._events: list[_Event] = []
        self._patches_BN: Tensor | None = None
        """Which patch each token behind the prefix is, or one of those that it stands for; None = all."""
        self._sizes_BT: Tensor | None = None
        """Patches in each token; None = one, in all."""
        self._open_BT: Tensor | None = None
        """In training, what carries the gate's gradient to what the layer adds."""
        self._start_BTD: Tensor | None = None
        self._owner_BT: Tensor | None = None

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        self._open_BT = self._start_BTD = None
        prefix, count = self.grid.num_prefix, self.tokens[layer].attention
        if count == x_BTD.shape[1]:
            return x_BTD
        if self._patches_BN is None:
            self._patches_BN = torch.arange(self.grid.num_patches).expand(len(x_BTD), -1)
        gate, scores_BN = self.reducer.gates[layer], self._scores(layer, x_BTD)
        assert isinstance(gate, Gate)
        # A row gate is a column gate where each token is its own neighbourhood: none can join, so some must stop.
        is_column = layer in self.reducer.before
        group_BN = quarters(self.grid)[self._patches_BN] if is_column else self._patches_BN
        means_BG, counts_BG = mean_scores(scores_BN, group_BN, self.grid.num_patches)
        noise = self.reducer.noise if self.reducer.training else 0.0
        noisy_BG = means_BG + noise * logistic_like(means_BG) if noise else means_BG
        joining = join_lowest(noisy_BG, group_BN, scores_BN, count - prefix)
        if self.reducer.training:
            least_BG = ((counts_BG > 0) & is_column).to(counts_BG.dtype)
            self._note(gate, scores_BN, _Groups(group_BN, means_BG, counts_BG, least_BG), joining)
        return self._go_on(x_BTD, joining, count)

    def after_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if self._open_BT is not None and self._start_BTD is not None:
            x_BTD = self._start_BTD + self._open_BT[..., None] * (x_BTD - self._start_BTD)
        if layer < len(self.tokens) - 1 or not self._events:
            return x_BTD
        self._sizes_BT = self._open_BT = None
        for event in reversed(self._events):
            x_BTD = event.undo(x_BTD)
        return x_BTD

    @property
    def sizes_BT(self) -> Tensor | None:
        if self._sizes_BT is None or self._open_BT is None:
            return self._open_BT if self._sizes_BT is None else self._sizes_BT
        return self._sizes_BT * self._open_BT

    def trace(self, num_items: int) -> Trace:
        if self._owner_BT is None:
            return super().trace(num_items)
        owner = self._owner_BT[:, self.grid.num_prefix :]
        return Trace(owner, owner >= 0)

    def _scores(self, layer: int, x_BTD: Tensor) -> Tensor:
        scores: Tensor = self.reducer.gates[layer](x_BTD, self.grid.num_prefix)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def _go_on(self, x_BTD: Tensor, joining: Joining, count: int) -> Tensor:
        prefix = self.grid.num_prefix
        first = torch.arange(prefix).expand(len(x_BTD), -1)
        to_BT = torch.cat([first, torch.where(joining.to < 0, -1, joining.to + prefix)], 1)
        exact = torch.promote_types(x_BTD.dtype, torch.float32)
        sizes = torch.ones_like(x_BTD[..., 0], dtype=exact) if self._sizes_BT is None else self._sizes_BT
        event = _Event(x_BTD, sizes.masked_fill(to_BT < 0, 0.0), to_BT, count)
        self._events.append(event)
        tokens_BTD, sizes = event.run()
        if self._sizes_BT is not None or bool(event.joined.any()):
            self._sizes_BT = sizes
        assert self._patches_BN is not None
        self._patches_BN = self._patches_BN.gather(1, joining.left)
        if self._owner_BT is None:
            self._owner_BT = to_BT
        else:
            went_on = to_BT.gather(1, self._owner_BT.clamp_min(0))
            self._owner_BT = torch.where(self._owner_BT < 0, -1, went_on)
        self._start_BTD = tokens_BTD if self._open_BT is not None else None
        return tokens_BTD

    def _note(self, gate: Gate, scores_BN: Tensor, groups: _Groups, joining: Joining) -> None:
        """What the losses read, and what the gradient passes through."""
        (batch, num_tokens), num_left = scores_BN.shape, joining.left.shape[1]
        least = float(groups.least.sum()) / (batch * num_tokens)
        if least == 1.0:  # nothing is left to be down-sampled
            groups, least = groups._replace(least=torch.zeros_like(groups.least)), 0.0
        share = max(num_left / num_tokens, least)
        fine = min(max((share - least) / (1.0 - least), 0.5 / num_tokens), 1.0 - 0.5 / num_tokens)
        p_BG = gate.probabilities(groups.means, fine)
        free_BG = groups.counts - groups.least
        expected = (groups.least + p_BG * free_BG).sum() / (batch * num_tokens)
        self.reducer.records.append(GateRecord(scores_BN, expected, share, self._patches_BN))
        p_BN = p_BG.gather(1, groups.of)
        p_BN = torch.where(_share(joining.to, num_left), 1.0 - p_BN, p_BN)
        p_BN = torch.where(free_BG.gather(1, groups.of) > 0, p_BN, 1.0)
        p_BK = p_BN.gather(1, joining.left)
        self._open_BT = F.pad(1.0 + p_BK - p_BK.detach(), (self.grid.num_prefix, 0), value=1.0)


class _Groups(NamedTuple):
    """The neighbourhoods that a gate decides about."""

    of: Tensor
    """int64 [B, N]: the one that each token is in."""
    means: Tensor
    """[B, groups], of the members' scores."""
    counts: Tensor
    """[B, groups], of members."""
    least: Tensor
    """[B, groups]: tokens of each that run if the gate is closed."""


def _share(to_BT: Tensor, num_left: int) -> Tensor:
    """bool [B, T]: which go on as the same token as another."""
    to = to_BT.clamp_min(0)
    counts = to.new_zeros(len(to), num_left).scatter_add(1, to, (to_BT >= 0).to(to.dtype))
    return (counts.gather(1, to) > 1) & (to_BT >= 0)
