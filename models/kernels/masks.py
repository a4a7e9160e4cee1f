"""Additive attention masks: 0 where a query sees a key, minus infinity elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor


class Masks:
    """The masks of one forward pass, each made once for all layers."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Tensor] = {}

    def causal(self, num_queries: int, start: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[queries, keys] for queries at positions ``start..start + num_queries`` over keys from position 0.

        A query sees the keys up to its own position; with a ``window``, only the last ``window`` of them.
        """
        key = (num_queries, start, window, dtype)
        if key not in self._made:
            queries = torch.arange(start, start + num_queries).unsqueeze(1)
            keys = torch.arange(start + num_queries)
            seen = keys <= queries
            if window is not None:
                seen &= keys > queries - window
            self._made[key] = _additive(seen, dtype)
        return self._made[key]

    def context(self, contexts: tuple[int, ...], num_keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[sequences, 1, 1, keys] for one query per sequence at the end of a context of that many keys."""
        key = (contexts, num_keys, window, dtype)
        if key not in self._made:
            ends = torch.tensor(contexts).unsqueeze(1)
            keys = torch.arange(num_keys)
            seen = keys < ends
            if window is not None:
                seen &= keys >= ends - window
            self._made[key] = _additive(seen, dtype)[:, None, None, :]
        return self._made[key]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
