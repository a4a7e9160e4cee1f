"""What opening a model for serving prepares."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.models.cache import PagedKVCache
from stepwell.models.kernels.linear import can_pack
from stepwell.models.loader import open_model
from stepwell.models.packed import PackedBatch, PackedSequence
from stepwell.serving.config import ModelConfig
from stepwell.serving.decoder_hosting import ffn_widths, packed_bytes, warm_up
from stepwell.serving.hosted import SAFE_OVERHEAD_S
from stepwell.serving.hosting import open_engine
from stepwell.serving.kv_memory import cache_pages
from stepwell.serving.point_costs import made_up_slice


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


def test_steps_are_predicted_from_the_profile(tiny: Path) -> None:
    opened = open_engine(ModelConfig(str(tiny), kv_cache_tokens=1024, page_tokens=16), _Nobody())
    assert opened.engine._cost_model is opened.cost_model
    assert all(curve[1] > 0.0 for curve in opened.cost_model.ladders["depth"].split)


def test_steps_are_predicted_by_rule_of_thumb_if_so_configured(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    opened = open_engine(ModelConfig(str(tiny), kv_cache_tokens=1024, page_tokens=16, profile="default"), _Nobody())
    assert "rule of thumb" in caplog.text
    costs = opened.cost_model.ladders
    assert set(costs) == {"depth", "width"}
    whole = opened.cost_model.raw_s([made_up_slice(opened.points["depth:2"], 10, 0)])
    share = opened.cost_model.raw_s([made_up_slice(opened.points["depth:0"], 10, 0)])
    assert (share - SAFE_OVERHEAD_S) / (whole - SAFE_OVERHEAD_S) == pytest.approx(opened.points["depth:0"].cost)


class _Nobody:
    """Watches no engine."""

    def request_finished(self, event: object, request: object) -> None: ...

    def request_refused(self, event: object, request: object) -> None: ...

    def step_finished(self, step: object) -> None: ...
