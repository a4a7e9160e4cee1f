"""Opening a model for serving: weights, cache, policy and engine, sized by its configuration."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stepwell.models.cache import OutOfPages, PagedKVCache
from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.models.kernels.linear import can_pack
from stepwell.models.ladder import LadderSet
from stepwell.models.loader import LoadedModel, ModelFiles, load_weights, read_files
from stepwell.models.packed import PackedBatch, PackedSequence
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.config import MIB, ModelConfig
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.host import EngineHost
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.engine.points import UnitParameters, operating_points
from stepwell.serving.engine.thread_host import ThreadHost
from stepwell.serving.profiles import load_or_measure
from stepwell.serving.runner import DecoderRunner

if TYPE_CHECKING:
    from stepwell.models.tokenizer import Tokenizer

_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KV_DTYPE = torch.float32
"""Keys and values are float32 for every model: on the CPU, torch's attention of a single query takes 2.6
times longer over bfloat16 keys (``benchmarks/results/attention.md``)."""

SAFE_FLOPS = 2e10
"""Operations a second that any processor of today does with one thread."""
SAFE_OVERHEAD_S = 2e-3
"""Of a step; dozens of small operations a layer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostedModel:
    """A model that is served: where its engine runs, and what requests are checked against."""

    host: EngineHost
    tokenizer: Tokenizer | None
    ladders: LadderSet
    points: Mapping[str, OperatingPoint]
    """All operating points by name."""
    parameters_of: Mapping[str, int]
    """Operating point name -> parameters that run for each token."""
    context_length: int
    """Prompt and generated tokens together, at most."""
    vocab_size: int
    cache_bytes: int
    """Memory of the key-value cache."""

    @classmethod
    def of(cls, config: ModelConfig, files: ModelFiles, host: EngineHost) -> HostedModel:
        """A model whose engine, wherever it runs, was opened from these files."""
        ladders, units = files.ladders, unit_parameters(files.config)
        points = operating_points(ladders, units)
        return cls(
            host=host,
            tokenizer=files.tokenizer,
            ladders=ladders,
            points=points,
            parameters_of={name: units.of(ladders.subnet(name)) for name in points},
            context_length=files.config.max_positions,
            vocab_size=files.config.vocab_size,
            cache_bytes=cache_pages(config, files.config) * page_bytes(config, files.config),
        )


OpenModel = Callable[[ModelConfig, EngineObserver], HostedModel]
"""Opens a model; its host is not started yet. Raises ValueError if it cannot."""


def run_dtype(config: ModelConfig, stated: torch.dtype) -> torch.dtype:
    """The type that the weights of a checkpoint run in, which states its own: with ``dtype: auto`` that, unless this
    processor has no instructions for it. Without them bfloat16 takes 4 times as long as float32."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    return stated if can_pack(stated) or not can_pack(torch.float32) else torch.float32


def prepare(config: ModelConfig) -> tuple[LoadedModel, PagedKVCache, dict[str, OperatingPoint]]:
    """Load a decoder, ready to serve, with an empty cache and its operating points by name.

    Raises ValueError naming the file or field and the remedy.
    """
    files = read_files(config.source)
    dtype = run_dtype(config, files.config.dtype)
    if dtype != files.config.dtype and config.dtype == "auto":
        _log.info("%s: runs in %s, this processor has no fast %s", files.name, dtype, files.config.dtype)
    loaded = load_weights(files, dtype)
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


def open_decoder(config: ModelConfig, observer: EngineObserver) -> HostedModel:
    """Load a decoder whose engine runs in a thread. Raises ValueError naming the file or field and the remedy."""
    opened = open_engine(config, observer)
    host = ThreadHost(opened.engine, opened.cost_model.correction, name=config.display_name)
    return HostedModel.of(config, opened.loaded, host)


@dataclass(frozen=True)
class OpenedEngine:
    """An engine that nothing runs yet."""

    loaded: LoadedModel
    engine: Engine
    points: Mapping[str, OperatingPoint]
    """All operating points by name."""
    cost_model: StepCostModel
    """What the engine predicts its steps with."""


def open_engine(config: ModelConfig, observer: EngineObserver) -> OpenedEngine:
    """Load a decoder and build its engine. Raises ValueError naming the file or field and the remedy."""
    loaded, cache, points = prepare(config)
    limits = Limits(config.max_step_tokens, config.max_running, config.max_waiting)
    policy = create_policy(config.policy, limits)
    predictor = cost_model(config, loaded, points, cache)
    warm_up(loaded.decoder, cache, loaded.ladders, config.max_step_tokens)
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
    row_s = 2 * unit_parameters(loaded.config).of(loaded.ladders.architecture.full) / SAFE_FLOPS
    _log.info("%s: steps are predicted by rule of thumb, corrected while serving (profile: default)", loaded.name)
    return StepCostModel.linear(tuple(points.values()), row_s, SAFE_OVERHEAD_S)


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


def unit_parameters(config: DecoderConfig) -> UnitParameters:
    """Parameters of a decoder's units; biases and norms, a fraction of a percent, are left out."""
    query_width = config.group_heads * config.head_dim
    return UnitParameters(
        attention_group=2 * config.hidden_size * (query_width + config.head_dim),
        ffn_channel=3 * config.hidden_size,
        head=config.vocab_size * config.hidden_size,
    )


def packed_bytes(config: ModelConfig, loaded: LoadedModel) -> int:
    """Memory that packed copies of the weights may take."""
    weights = sum(parameter.nbytes for parameter in loaded.decoder.parameters())
    return int(config.packed_weights_ratio * weights)


def ffn_widths(ladders: LadderSet) -> set[int]:
    """All FFN widths that some level runs in some layer."""
    levels = (level for ladder in ladders.ladders.values() for level in ladder.levels)
    return {channels for level in levels for channels in level.subnet.ffn_channels}


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
