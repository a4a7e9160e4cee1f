"""What opening a model for serving prepares."""

from __future__ import annotations

import pytest

from stepwell.models.cache import PagedKVCache
from stepwell.models.kernels.linear import can_pack
from stepwell.models.loader import open_model
from stepwell.models.packed import PackedBatch, PackedSequence
from stepwell.serving.config import ModelConfig
from stepwell.serving.hosting import cache_pages, ffn_widths, packed_bytes, warm_up


def test_no_level_of_the_default_ladder_is_packed_while_requests_wait() -> None:
    loaded = open_model("nested-lm")
    config, ladders = loaded.config, loaded.ladders
    decoder = loaded.decoder.prepare_serving(packed_bytes(ModelConfig("nested-lm"), loaded), ffn_widths(ladders))
    cache = PagedKVCache(config.num_layers, config.num_kv_heads, config.head_dim, config.num_layers)
    warm_up(decoder, cache, ladders)
    cache.check_integrity()
    assert cache.free_pages == cache.total_pages
    packed = decoder.linear.packed_bytes
    for level in ladders.ladders[ladders.default].levels:
        pages = cache.open(level.subnet)
        cache.reserve(pages, 2)
        decoder(PackedBatch.pack([PackedSequence([1, 2], 0, level.subnet, pages, True)], cache))
        cache.free(pages)
    assert decoder.linear.packed_bytes == packed
    assert (packed > 0) == can_pack(decoder.dtype)


def test_all_widths_of_all_ladders_are_known() -> None:
    assert ffn_widths(open_model("nested-lm").ladders) - {0} == {128, 256, 384, 512}


def test_a_cache_that_cannot_hold_one_page_a_layer_is_refused() -> None:
    config = open_model("nested-lm").config
    with pytest.raises(ValueError, match="kv_cache_mib: 1 MiB hold 1 pages, fewer than the model's 8 layers"):
        cache_pages(ModelConfig("nested-lm", kv_cache_mib=1, page_tokens=2048), config)
