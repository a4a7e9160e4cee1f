"""Small caches, each checked for integrity when its test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from stepwell.models.cache import PagedKVCache
from stepwell.models.ladder import SubNetwork


@pytest.fixture
def make_cache() -> Iterator[Callable[..., PagedKVCache]]:
    """``make_cache(num_pages, page_tokens=4)``: three layers, two key-value heads."""
    made: list[PagedKVCache] = []

    def make(num_pages: int, page_tokens: int = 4, with_storage: bool = False) -> PagedKVCache:
        made.append(PagedKVCache(3, 2, 2, num_pages, page_tokens, torch.float64, with_storage))
        return made[-1]

    yield make
    for cache in made:
        cache.check_integrity()


@pytest.fixture
def full() -> SubNetwork:
    return SubNetwork((2, 2, 2), (8, 8, 8))


@pytest.fixture
def shallow() -> SubNetwork:
    """The first two layers of ``full``."""
    return SubNetwork((2, 2, 0), (8, 8, 0))


@pytest.fixture
def narrow() -> SubNetwork:
    """``full`` with half the FFN channels."""
    return SubNetwork((2, 2, 2), (4, 4, 4))
