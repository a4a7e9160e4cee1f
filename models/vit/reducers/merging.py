"""``merge``: tokens that are alike become one (ToMe: Bolya et al. 2023, arXiv 2210.09461). No training.

Between attention and FFN of every layer, with k_i the mean of token i's keys over the heads, normalised:

1. the tokens are split alternately into A (even places) and B (odd places);
2. each a in A has an edge to the b in B with the largest k_a . k_b; the r strongest edges are kept;
3. each such a is merged into its b: x_b = sum of size * x / sum of size, over b and all that join it.

Prefix tokens are never merged. Attention is proportional: logits + log(size of the key's token). A layer merges at
most half of its patches.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.vit.grid import Grid
from stepwell.models.vit.reducers.base import LayerTokens, Pass, Reducer, Schedule, Trace
from stepwell.models.vit.reducers.rows import gather_rows


class Merging(Reducer):
    """See the module. The schedule merges the same number in every layer as long as half of the patches allow it."""

    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        return _schedule(grid, num_layers, budget)

    def own_products(self, grid: Grid, num_layers: int, budget: float) -> int:
        """Of the keys of A and B, in layers that merge."""
        merging = [had for had, left in self.schedule(grid, num_layers, budget) if left < had]
        return sum((count + 1) // 2 * (count // 2) for count in merging) * self.head_dim

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        return _Merges(grid, self.schedule(grid, num_layers, budget))


@lru_cache(maxsize=1024)
def _schedule(grid: Grid, num_layers: int, budget: float) -> Schedule:
    """By bisection over the number of merges, all layers together, that are asked for."""
    allowed = budget * 2 * num_layers * grid.num_tokens
    low, high = 0, num_layers * grid.num_patches
    while low < high:
        middle = (low + high) // 2
        if sum(map(sum, _merge_evenly(grid, num_layers, middle))) <= allowed:
            high = middle
        else:
            low = middle + 1
    return _merge_evenly(grid, num_layers, low)


def _merge_evenly(grid: Grid, num_layers: int, num_merges: int) -> Schedule:
    tokens, schedule = grid.num_tokens, []
    for layer in range(num_layers):
        share = num_merges // num_layers + (layer < num_merges % num_layers)
        left = tokens - min(share, (tokens - grid.num_prefix) // 2)
        schedule.append(LayerTokens(tokens, left))
        tokens = left
    return tuple(schedule)


class _Merges(Pass):
    wants_keys = True

    def __init__(self, grid: Grid, schedule: Schedule) -> None:
        super().__init__(grid)
        self.schedule = schedule
        self._sizes_BT: Tensor | None = None
        self._owner_BN: Tensor | None = None
        self._ran_owner_BN: Tensor | None = None

    @property
    def sizes_BT(self) -> Tensor | None:
        return self._sizes_BT

    def between(self, layer: int, x_BTD: Tensor, keys_BTd: Tensor | None) -> Tensor:
        num_merges = self.schedule[layer].attention - self.schedule[layer].ffn
        if num_merges == 0:
            return x_BTD
        # A layer whose attention the sub-network leaves out has no keys: then the tokens themselves are compared.
        place_BT = match(x_BTD if keys_BTd is None else keys_BTd, num_merges, self.grid.num_prefix)
        exact = torch.promote_types(x_BTD.dtype, torch.float32)  # bfloat16 cannot count beyond 256
        sizes = torch.ones_like(x_BTD[..., 0], dtype=exact) if self._sizes_BT is None else self._sizes_BT
        merged, self._sizes_BT = merge(x_BTD, sizes, place_BT, x_BTD.shape[1] - num_merges)
        self._owner_BN = place_BT if self._owner_BN is None else place_BT.gather(1, self._owner_BN)
        return merged

    def restore(self, x_BTD: Tensor) -> Tensor:
        if self._owner_BN is None:
            return x_BTD
        return gather_rows(x_BTD, self._owner_BN)

    def trace(self, num_items: int) -> Trace:
        if self._owner_BN is None:
            return super().trace(num_items)
        patches = self._owner_BN[:, self.grid.num_prefix :]
        return Trace(patches, torch.ones_like(patches, dtype=torch.bool))


def match(metric_BTd: Tensor, num_merges: int, num_prefix: int) -> Tensor:
    """Bipartite soft matching: where each token goes, int64 [B, T], among ``T - num_merges`` tokens.

    The new order is the prefix, what is left of A, then B.
    """
    batch, num_tokens, _ = metric_BTd.shape
    metric = F.normalize(metric_BTd.detach().float(), dim=-1)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = a @ b.transpose(1, 2)
    scores[:, : (num_prefix + 1) // 2] = -torch.inf
    scores[:, :, : num_prefix // 2] = -torch.inf
    best, partner = scores.max(-1)
    merged_A = best.topk(num_merges, dim=1).indices
    stays_A = torch.ones_like(best, dtype=torch.bool).scatter(1, merged_A, False)
    in_a, in_b = (num_prefix + 1) // 2, num_prefix // 2
    # Prefix tokens stay in front; behind them what is left of A in order, then B in order.
    place_A = torch.cumsum(stays_A, 1) - 1 + in_b
    place_A[:, :in_a] = 2 * torch.arange(in_a)
    place_B = torch.arange(b.shape[1]) + a.shape[1] - num_merges
    place_B[:in_b] = 2 * torch.arange(in_b) + 1
    place_BT = torch.empty(batch, num_tokens, dtype=torch.int64)
    place_BT[:, ::2] = torch.where(stays_A, place_A, place_B[partner])
    place_BT[:, 1::2] = place_B
    return place_BT


def merge(x_BTD: Tensor, sizes_BT: Tensor, place_BT: Tensor, num_left: int) -> tuple[Tensor, Tensor]:
    """Size-weighted means of the tokens that go to the same place [B, num_left, D], and their sizes."""
    batch, _, width = x_BTD.shape
    rows = (place_BT + torch.arange(batch)[:, None] * num_left).flatten()
    sizes = sizes_BT.new_zeros(batch * num_left).index_add_(0, rows, sizes_BT.flatten())
    weighted = (x_BTD * sizes_BT[..., None]).flatten(0, 1)
    sums = weighted.new_zeros(batch * num_left, width).index_add_(0, rows, weighted)
    return (sums / sizes[:, None]).to(x_BTD.dtype).view(batch, num_left, width), sizes.view(batch, num_left)
