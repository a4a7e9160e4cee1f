"""Paged key-value cache: pages of one layer each, reference counted, shared by content (PagedAttention, 2309.06180)."""

from stepwell.models.cache.paged import PagedKVCache
from stepwell.models.cache.pool import OutOfPages
from stepwell.models.cache.sequence import CacheSequence

__all__ = ["CacheSequence", "OutOfPages", "PagedKVCache"]
