"""``route``: in every layer a gate chooses the tokens that run it; the others pass it by (DiT: arXiv 2308.03409).

The gate of layer l gives token i the score g_i = gate_l(LN(x_i)) and the probability p_i = sigmoid(g_i + b_l + c_l *
logit(s_l)) of running, where s_l is the share of patches that the layer runs at the budget. At serving time the s_l N
highest scores run: among themselves they attend and go through the FFN, gathered, and are put back where they were.
What a layer does not run costs nothing in it and stays bit for bit as it is; with early stop for good, otherwise it may
run a later layer. Prefix tokens always run. A layer's share is min(1, c * profile_l), with one c that meets the budget.

In training p_i are made binary by Gumbel noise, the k highest of g_i + noise run, and gradients pass straight through:
m_i = 1 + p_i - stopgrad(p_i) multiplies what the layer adds to the token, and the weight that others attend to it with.
:attr:`Routing.records` is for the losses: that which keeps p at the budget, and any that says which tokens matter.

Three differences from the paper, whose code was never released. Its gate is a linear projection; here it has a hidden
layer, because what tells an empty patch, contrast, has no sign in the patch embedding. Its probabilities decide at
serving time too, so that the cost is met on average; here the budget is met by every image. And these are its row gates
alone; its column gates, which send tokens to a coarser scale, are ``downsample``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.fields import read_flag
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import Pass, Schedule, Trace
from stepwell.models.vit.reducers.gates import Gate, GatedReducer, GateRecord, logistic_like
from stepwell.models.vit.reducers.rows import gather_rows, put_rows

if TYPE_CHECKING:
    from stepwell.models.vit.config import ViTConfig


class Routing(GatedReducer):
    """See the module. ``config.json``::

    "reducers": {"route": {"hidden_size": 24, "profile": [1.0, 0.8, ...], "early_stop": true}}

    ``profile``: one number a layer, none larger than the one before; absent = all layers run alike. ``early_stop``: a
    token that was passed by once is done; absent = it may run a later layer.
    """

    def __init__(self, config: ViTConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings, "reducers.route")
        self.early_stop = read_flag(settings, "early_stop")

    @property
    def narrows(self) -> bool:
        return self.early_stop

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        self.records = []
        kind = _Stop if self.early_stop else _Route
        return kind(self, grid, self.schedule(grid, num_layers, budget))


class _Route(Pass):
    """Tokens that run are gathered before a layer and put back after it."""

    def __init__(self, routing: Routing, grid: Grid, schedule: Schedule) -> None:
        super().__init__(grid)
        self.routing, self.tokens = routing, schedule
        self._before: Tensor | None = None
        """All tokens, if some of them do not run the layer."""
        self._index_BT: Tensor | None = None
        self._open_BT: Tensor | None = None

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        self._before = self._index_BT = self._open_BT = None
        if self.tokens[layer].attention == x_BTD.shape[1]:
            return x_BTD
        self._before, self._index_BT = x_BTD, self._choose(layer, x_BTD)
        return gather_rows(x_BTD, self._index_BT)

    def after_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if self._before is None or self._index_BT is None:
            return x_BTD
        # In place: the packed rows that these are a view of were replaced by those of the gathered tokens.
        return put_rows(self._before, self._index_BT, self._opened(x_BTD))

    def _opened(self, x_BTD: Tensor) -> Tensor:
        """In training, the layer's output with the gates' gradient; otherwise itself."""
        if self._open_BT is None or self._before is None or self._index_BT is None:
            return x_BTD
        before = gather_rows(self._before, self._index_BT)
        return before + self._open_BT[..., None] * (x_BTD - before)

    def _choose(self, layer: int, x_BTD: Tensor) -> Tensor:
        """Tokens that run [B, tokens of the layer]: the prefix, and the patches with the highest scores."""
        prefix, gate = self.grid.num_prefix, self.routing.gates[layer]
        assert isinstance(gate, Gate)
        count, scores_BN = self.tokens[layer].attention - prefix, gate(x_BTD, prefix)
        if self.routing.training:
            chosen = (scores_BN + self.routing.noise * logistic_like(scores_BN)).topk(count, dim=1).indices
            self._note(gate, scores_BN, chosen)
        else:
            chosen = scores_BN.topk(count, dim=1, sorted=False).indices
        return torch.cat([torch.arange(prefix).expand(len(x_BTD), -1), chosen + prefix], 1)

    def _note(self, gate: Gate, scores_BN: Tensor, chosen_BK: Tensor) -> None:
        """What the losses read, and what the gradient passes through."""
        num_patches, count = scores_BN.shape[1], chosen_BK.shape[1]
        share = min(max(count, 0.5), num_patches - 0.5) / num_patches
        p_BN = gate.probabilities(scores_BN, share)
        self.routing.records.append(GateRecord(scores_BN, p_BN.mean(), share, self._patches()))
        p_BK = p_BN.gather(1, chosen_BK)
        self._open_BT = F.pad(1.0 + p_BK - p_BK.detach(), (self.grid.num_prefix, 0), value=1.0)

    def _patches(self) -> Tensor | None:
        """Which patches [B, N] the gate sees; None = all."""
        return None

    @property
    def sizes_BT(self) -> Tensor | None:
        return self._open_BT

    def trace(self, num_items: int) -> Trace:
        trace = super().trace(num_items)
        if self._index_BT is None:
            return trace
        ran = torch.zeros(num_items, self.grid.num_tokens, dtype=torch.bool).scatter(1, self._index_BT, True)
        return Trace(trace.owner, ran[:, self.grid.num_prefix :])


class _Stop(_Route):
    """Tokens that do not run a layer are done: they stay as they are, and no later gate looks at them."""

    def __init__(self, routing: Routing, grid: Grid, schedule: Schedule) -> None:
        super().__init__(routing, grid, schedule)
        self._going_BT: Tensor | None = None
        """Places of the tokens that go on, among all; None = all do."""
        self._stopped: list[tuple[Tensor | None, Tensor]] = []
        """Before each layer that some stop at: those that got there, and where they belong."""

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        chosen_BTD = super().before_layer(layer, x_BTD)
        if self._index_BT is not None:
            self._stopped.append((self._going_BT, x_BTD))
            going = self._going_BT
            self._going_BT = self._index_BT if going is None else going.gather(1, self._index_BT)
        return chosen_BTD

    def after_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        return self._opened(x_BTD)

    def restore(self, x_BTD: Tensor) -> Tensor:
        found = x_BTD
        for places, tokens_BTD in [*self._stopped, (self._going_BT, x_BTD)]:
            found = tokens_BTD.clone() if places is None else put_rows(found, places, tokens_BTD)
        return found

    def _patches(self) -> Tensor | None:
        return None if self._going_BT is None else self._going_BT[:, self.grid.num_prefix :] - self.grid.num_prefix

    def trace(self, num_items: int) -> Trace:
        owner = torch.full((num_items, self.grid.num_tokens), -1)
        going = torch.arange(self.grid.num_tokens).expand(num_items, -1) if self._going_BT is None else self._going_BT
        owner = owner.scatter(1, going, going)[:, self.grid.num_prefix :]
        return Trace(owner, owner >= 0)
