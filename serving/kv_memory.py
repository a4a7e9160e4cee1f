"""Memory of a decoder's key-value cache."""

from __future__ import annotations

import torch

from stepwell.models.config import DecoderConfig
from stepwell.serving.config import MIB, ModelConfig

KV_DTYPE = torch.float32
"""Keys and values are float32 for every model: on the CPU, torch's attention of a single query takes 2.6
times longer over bfloat16 keys (``benchmarks/results/attention.md``)."""


def cache_bytes(config: ModelConfig, decoder: DecoderConfig) -> int:
    """Of all pages. Raises ValueError as :func:`cache_pages`."""
    return cache_pages(config, decoder) * page_bytes(config, decoder)


def page_bytes(config: ModelConfig, decoder: DecoderConfig) -> int:
    """Keys and values of one page: ``page_tokens`` tokens of one layer."""
    return 2 * config.page_tokens * decoder.num_kv_heads * decoder.head_dim * KV_DTYPE.itemsize


def cache_pages(config: ModelConfig, decoder: DecoderConfig) -> int:
    """Pages of the cache; at least enough for one page in every layer."""
    if config.kv_cache_tokens is not None:
        return -(-config.kv_cache_tokens // config.page_tokens) * decoder.num_layers
    pages = config.kv_cache_mib * MIB // page_bytes(config, decoder)
    if pages < decoder.num_layers:
        raise ValueError(
            f"kv_cache_mib: {config.kv_cache_mib} MiB hold {pages} pages, fewer than the model's {decoder.num_layers} "
            "layers; give more"
        )
    return pages
