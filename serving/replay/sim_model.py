"""What a simulation knows of a model: what the server would find out when it opens it, costs included."""

from __future__ import annotations

import torch

from stepwell.serving.config import ModelConfig
from stepwell.serving.decoder_hosting import cost_model, prepare
from stepwell.serving.replay.simulate import SimModel


def open_sim_model(config: ModelConfig, threads: int = 0) -> tuple[SimModel, str]:
    """A model as a server of ``threads`` threads (0 = what torch chooses) would host it, and where its costs are from.

    They are the profile of this machine, measured now if there is none, unless ``config.profile`` is ``default``.
    Raises ValueError if it cannot be opened.
    """
    if threads:
        torch.set_num_threads(threads)
    loaded, cache, points = prepare(config)
    decoder, ladders = loaded.config, loaded.ladders
    measured = f"this machine's profile with {torch.get_num_threads()} threads"
    return SimModel(
        ladders=ladders,
        points=points,
        costs=cost_model(config, loaded, points, cache),
        num_pages=cache.total_pages,
        page_tokens=config.page_tokens,
        vocab_size=decoder.vocab_size,
        context_length=decoder.max_positions,
    ), measured if config.profile == "auto" else "a rule of thumb"
