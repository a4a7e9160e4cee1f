"""Opening a model that answers as a whole for serving: weights, policy and engine, sized by its configuration."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stepwell.models.cache import PagedKVCache
from stepwell.models.ladder import Ladder, LadderSet, Level, SubNetwork
from stepwell.models.loader import ModelFiles, load_predictor
from stepwell.models.one_shot import Item, OneShotConfig, OneShotModel
from stepwell.models.profiler import Progress, no_progress
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.engine.points import operating_points
from stepwell.serving.hosted import OpenedEngine, item_shape, rule_of_thumb, step_tokens, unit_parameters
from stepwell.serving.precision import say_dtype
from stepwell.serving.predictor_costs import measure_points
from stepwell.serving.predictor_runner import PredictorRunner
from stepwell.serving.profiles import PredictorProfile, ProfileKey, load_profile, profile_key, save_profile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictor:
    """A model ready to run."""

    files: ModelFiles
    model: OneShotModel
    points: Mapping[str, OperatingPoint]
    """All operating points by name."""

    @property
    def config(self) -> OneShotConfig:
        return self.model.config


def open_predictor_engine(config: ModelConfig, files: ModelFiles, observer: EngineObserver) -> OpenedEngine:
    """Load a model and build its engine. Raises ValueError naming the file or field and the remedy."""
    predictor = prepare_predictor(config, files)
    limits = Limits(step_tokens(config, predictor.config), config.max_running, config.max_waiting)
    policy = create_policy(config.policy, limits)
    costs = predictor_cost_model(config, predictor)
    warm_up_predictor(predictor)
    engine = Engine(
        runner=PredictorRunner(predictor.model, files.ladders),
        cache=PagedKVCache(files.ladders.architecture.num_layers, 1, 1, 1, with_storage=False),
        policy=policy,
        tokenizer=None,
        ladders=without_keys(files.ladders),
        limits=limits,
        eos_token_ids=(),
        cost_model=costs,
        observer=observer,
    )
    return OpenedEngine(files, engine, predictor.points, costs)


def prepare_predictor(config: ModelConfig, files: ModelFiles) -> Predictor:
    """Load a model, ready to serve. Raises ValueError naming the file or field and the remedy."""
    model = load_predictor(files, say_dtype(config, files))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    levels = [level for ladder in files.ladders.ladders.values() for level in ladder.levels]
    widths = {channels for level in levels for channels in level.subnet.ffn_channels}
    model = model.prepare_serving(int(config.packed_weights_ratio * weights), widths)
    return Predictor(files, model, operating_points(files.ladders, unit_parameters(files.config)))


def without_keys(ladders: LadderSet) -> LadderSet:
    """The same ladders as their engine's cache sees them: no layer keeps keys and values for a later step."""

    def bare(level: Level) -> Level:
        none = SubNetwork((0,) * len(level.subnet.kv_groups), level.subnet.ffn_channels)
        return Level(none, level.quality, level.metric, level.reduction)

    bared = {
        name: Ladder(name, tuple(bare(level) for level in ladder.levels)) for name, ladder in ladders.ladders.items()
    }
    return LadderSet(ladders.architecture, bared, ladders.default, ladders.quality_metric)


def made_up_item(config: OneShotConfig, level: Level, num_tokens: int = 0) -> Item:
    """An item to measure with: noise, since reducers look at what they are given. ``num_tokens``: of a text that is not
    a typical one."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_tokens,) if num_tokens else item_shape(config)
    if config.vocab_size:
        data = torch.randint(config.vocab_size, shape, generator=generator)
    else:
        data = torch.randn(shape, generator=generator)
    return Item(data, level.subnet, level.reduction)


def warm_up_predictor(predictor: Predictor) -> None:
    """Run all levels of the default ladder in one batch: weight slices are packed on first use."""
    ladders = predictor.files.ladders
    items = [made_up_item(predictor.config, level) for level in ladders.ladders[ladders.default].levels]
    predictor.model.run(items, tuple(predictor.config.outputs))


def predictor_cost_model(config: ModelConfig, predictor: Predictor) -> StepCostModel:
    """What predicts the steps: the stored profile, measured and stored if there is none, or the rule of thumb."""
    files = predictor.files
    if config.profile != "auto":
        return rule_of_thumb(files, predictor.points)
    key = profile_key(files.path, predictor.model.dtype, config.packed_weights_ratio)
    profile = load_profile(key)
    if not isinstance(profile, PredictorProfile):
        _log.info("%s: no profile for this machine with %d threads; measuring", files.name, key.threads)
        profile = measure_predictor(config, predictor, key)
        path = save_profile(profile)
        _log.info("%s: measured in %.1f s, kept as %s", files.name, profile.measured_in_s, path)
    return profile.cost_model(files.ladders)


def measure_predictor(
    config: ModelConfig, predictor: Predictor, key: ProfileKey, progress: Progress = no_progress
) -> PredictorProfile:
    """Measure a model that is prepared for serving."""
    start = time.monotonic()
    ladders, stated = predictor.files.ladders, predictor.config
    curves = measure_points(
        predictor.model,
        ladders.ladders[ladders.default],
        {name: point.cost for name, point in predictor.points.items()},
        lambda name, num_tokens: made_up_item(stated, ladders.level(name), num_tokens),
        tuple(stated.outputs),
        stated.num_tokens(item_shape(stated)),
        step_tokens(config, stated),
        stated.max_tokens,
        progress,
    )
    return PredictorProfile(key, curves, time.monotonic() - start)
