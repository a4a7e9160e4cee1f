"""What a simulation knows of a model: what the server would find out when it opens it, costs included."""

from __future__ import annotations

import torch

from stepwell.models.config import DecoderConfig
from stepwell.models.loader import ModelFiles, read_files
from stepwell.schedulers.plan import Limits
from stepwell.serving.config import ModelConfig
from stepwell.serving.decoder_hosting import cost_model, prepare
from stepwell.serving.hosted import context_length, item_shape, step_tokens
from stepwell.serving.predictor_hosting import predictor_cost_model, prepare_predictor, without_keys
from stepwell.serving.replay.items import ItemTokens
from stepwell.serving.replay.simulate import SimModel


def open_sim_model(config: ModelConfig, threads: int = 0) -> tuple[SimModel, str]:
    """A model as a server of ``threads`` threads (0 = what torch chooses) would host it, and where its costs are from.

    They are the profile of this machine, measured now if there is none, unless ``config.profile`` is ``default``.
    Raises ValueError if it cannot be opened.
    """
    if threads:
        torch.set_num_threads(threads)
    files = read_files(config.source)
    model = _decoder(config, files) if isinstance(files.config, DecoderConfig) else _predictor(config, files)
    measured = f"this machine's profile with {torch.get_num_threads()} threads"
    return model, measured if config.profile == "auto" else "a rule of thumb"


def limits_of(config: ModelConfig, model: SimModel) -> Limits:
    """Of the steps of a server of this model."""
    return Limits(model.step_tokens, config.max_running, config.max_waiting)


def _decoder(config: ModelConfig, files: ModelFiles) -> SimModel:
    loaded, cache, points = prepare(config, files)
    return SimModel(
        ladders=loaded.ladders,
        points=points,
        costs=cost_model(config, loaded, points, cache),
        num_pages=cache.total_pages,
        page_tokens=config.page_tokens,
        vocab_size=loaded.config.vocab_size,
        context_length=loaded.config.max_positions,
        step_tokens=config.generation_step_tokens,
    )


def _predictor(config: ModelConfig, files: ModelFiles) -> SimModel:
    predictor = prepare_predictor(config, files)
    stated = predictor.config
    most_in_step = step_tokens(config, stated)
    longest = min(context_length(stated), most_in_step)
    own = 0 if stated.vocab_size else stated.num_tokens(item_shape(stated))
    return SimModel(
        ladders=without_keys(files.ladders),
        points=predictor.points,
        costs=predictor_cost_model(config, predictor),
        num_pages=1,
        page_tokens=config.page_tokens,
        vocab_size=stated.vocab_size,
        context_length=longest,
        items=ItemTokens(own, own) if own else ItemTokens(1, longest),
        step_tokens=most_in_step,
    )
