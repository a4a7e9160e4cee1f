"""Opening a decoder for serving: weights, cache, policy and engine, sized by its configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from stepwell.models.cache import OutOfPages, PagedKVCache
from stepwell.models.decoder import Decoder
from stepwell.models.ladder import LadderSet
from stepwell.models.loader import LoadedModel, ModelFiles, load_weights, read_files
from stepwell.models.packed import PackedBatch, PackedSequence
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.engine.points import operating_points
from stepwell.serving.hosted import OpenedEngine, rule_of_thumb, unit_parameters
from stepwell.serving.kv_memory import KV_DTYPE, cache_pages
from stepwell.serving.precision import say_dtype
from stepwell.serving.profiles import load_or_measure
from stepwell.serving.runner import DecoderRunner


def prepare(
    config: ModelConfig, files: ModelFiles | None = None
) -> tuple[LoadedModel, PagedKVCache, dict[str, OperatingPoint]]:
    """Load a decoder, ready to serve, with an empty cache and its operating points by name. ``files``: its own, if they
    are read already.

    Raises ValueError naming the file or field and the remedy.
    """
    files = files or read_files(config.source)
    loaded = load_weights(files, say_dtype(config, files))
    loaded.decoder.prepare_serving(packed_bytes(config, loaded), ffn_widths(loaded.ladders))
    cache = PagedKVCache(
        loaded.config.num_layers,
        loaded.config.num_kv_heads,
        loaded.config.head_dim,
        cache_pages(config, loaded.config),
        page_tokens=config.page_tokens,
        dtype=KV_DTYPE,
    )
    return loaded, cache, operating_points(loaded.ladders, unit_parameters(loaded.config))


def open_decoder_engine(config: ModelConfig, files: ModelFiles, observer: EngineObserver) -> OpenedEngine:
    """Load a decoder and build its engine. Raises ValueError naming the file or field and the remedy."""
    loaded, cache, points = prepare(config, files)
    limits = Limits(config.generation_step_tokens, config.max_running, config.max_waiting)
    policy = create_policy(config.policy, limits)
    predictor = cost_model(config, loaded, points, cache)
    warm_up(loaded.decoder, cache, loaded.ladders, config.generation_step_tokens)
    engine = Engine(
        runner=DecoderRunner(loaded.decoder, cache),
        cache=cache,
        policy=policy,
        tokenizer=loaded.tokenizer,
        ladders=loaded.ladders,
        limits=limits,
        eos_token_ids=loaded.config.eos_token_ids,
        cost_model=predictor,
        observer=observer,
    )
    return OpenedEngine(loaded, engine, points, predictor)


def cost_model(
    config: ModelConfig, loaded: LoadedModel, points: Mapping[str, OperatingPoint], cache: PagedKVCache
) -> StepCostModel:
    """What predicts the steps of a model that is prepared for serving: its profile, or the rule of thumb."""
    if config.profile == "auto":
        return load_or_measure(loaded, points, cache, config.packed_weights_ratio).cost_model(loaded.ladders)
    return rule_of_thumb(loaded, points)


def warm_up(decoder: Decoder, cache: PagedKVCache, ladders: LadderSet, max_step_tokens: int = 1) -> None:
    """Run every level of the default ladder, largest first, then all in one batch: weight slices are packed on first
    use, and code is generated for every count of rows. No request should wait for that."""
    levels = ladders.ladders[ladders.default].levels[::-1]
    num_tokens = min(cache.page_tokens, decoder.config.max_positions)
    for group in (*([level] for level in levels), levels):
        sequences: list[PackedSequence] = []
        with contextlib.suppress(OutOfPages):  # a tiny cache: as many as fit
            for level in group:
                pages = cache.open(level.subnet)
                sequences.append(PackedSequence([0] * num_tokens, 0, level.subnet, pages, wants_logits=True))
                cache.reserve(pages, num_tokens)
        ready = [sequence for sequence in sequences if sequence.pages.capacity or not sequence.subnet.kv_layers]
        if ready:
            decoder(PackedBatch.pack(ready, cache))
        for sequence in sequences:
            cache.free(sequence.pages)
    decoder.linear.warm_up(max_step_tokens)


def packed_bytes(config: ModelConfig, loaded: LoadedModel) -> int:
    """Memory that packed copies of the weights may take."""
    weights = sum(parameter.nbytes for parameter in loaded.decoder.parameters())
    return int(config.packed_weights_ratio * weights)


def ffn_widths(ladders: LadderSet) -> set[int]:
    """All FFN widths that some level runs in some layer."""
    levels = (level for ladder in ladders.ladders.values() for level in ladder.levels)
    return {channels for level in levels for channels in level.subnet.ffn_channels}
