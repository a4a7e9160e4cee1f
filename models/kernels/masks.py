"""Additive attention masks: 0 where a query sees a key, minus infinity elsewhere.

A step uses the same mask in all its layers, so the last few are kept.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def causal_mask(num_queries: int, start: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[queries, keys] for queries at positions ``start..start + num_queries`` over keys from position 0.

    A query sees the keys up to its own position; with a ``window``, only the last ``window`` of them.
    """
    queries = torch.arange(start, start + num_queries).unsqueeze(1)
    keys = torch.arange(start + num_queries)
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    return _additive(seen, dtype)


@lru_cache(maxsize=16)
def context_mask(contexts: tuple[int, ...], num_keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[sequences, 1, 1, keys] for one query per sequence at the end of a context of that many keys."""
    ends = torch.tensor(contexts).unsqueeze(1)
    keys = torch.arange(num_keys)
    seen = keys < ends
    if window is not None:
        seen &= keys >= ends - window
    return _additive(seen, dtype)[:, None, None, :]


@torch.inference_mode(False)  # a mask made while serving is kept, and training may meet it
def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
