"""What a simulation knows of a model: what the server would find out when it opens it, costs included."""

from __future__ import annotations

import torch

from stepwell.models.cache import PagedKVCache
from stepwell.models.loader import open_model
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine.points import operating_points
from stepwell.serving.hosting import KV_DTYPE, cache_pages, cost_model, ffn_widths, packed_bytes, unit_parameters
from stepwell.serving.replay.simulate import SimModel


def open_sim_model(config: ModelConfig, threads: int = 0) -> tuple[SimModel, str]:
    """A model as a server of ``threads`` threads (0 = what torch chooses) would host it, and where its costs are from.

    They are the profile of this machine, measured now if there is none, unless ``config.profile`` is ``default``.
    Raises ValueError if it cannot be opened.
    """
    if threads:
        torch.set_num_threads(threads)
    loaded = open_model(config.source, getattr(torch, config.dtype, None))  # "auto" is none of its types
    decoder, ladders = loaded.config, loaded.ladders
    loaded.decoder.prepare_serving(packed_bytes(config, loaded), ffn_widths(ladders))
    points = operating_points(ladders, unit_parameters(decoder))
    num_pages = cache_pages(config, decoder)
    shape = decoder.num_layers, decoder.num_kv_heads, decoder.head_dim, num_pages
    cache = PagedKVCache(*shape, page_tokens=config.page_tokens, dtype=KV_DTYPE)
    measured = f"this machine's profile with {torch.get_num_threads()} threads"
    return SimModel(
        ladders=ladders,
        points=points,
        costs=cost_model(config, loaded, points, cache),
        num_pages=num_pages,
        page_tokens=config.page_tokens,
        vocab_size=decoder.vocab_size,
        context_length=decoder.max_positions,
    ), measured if config.profile == "auto" else "a rule of thumb"
