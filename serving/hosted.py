"""A model that is served: where its engine runs, and what requests are checked against."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from stepwell.models.config import DecoderConfig
from stepwell.models.image_input import ImageInput
from stepwell.models.ladder import LadderSet
from stepwell.models.loader import ModelFiles
from stepwell.models.one_shot import OneShotConfig
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine.host import EngineHost
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.engine.points import UnitParameters, operating_points
from stepwell.serving.kv_memory import cache_bytes

if TYPE_CHECKING:
    from stepwell.models.tokenizer import Tokenizer
    from stepwell.serving.engine.engine import Engine

SAFE_FLOPS = 2e10
"""Operations a second that any processor of today does with one thread."""
SAFE_OVERHEAD_S = 2e-3
"""Of a step; dozens of small operations a layer."""

TEXT_TOKENS = 64
"""Of the texts that costs are measured with."""

_log = logging.getLogger(__name__)

Task: TypeAlias = Literal["generate", "classify", "segment", "encode"]


@dataclass(frozen=True)
class HostedModel:
    """A model in memory."""

    host: EngineHost
    task: Task
    tokenizer: Tokenizer | None
    ladders: LadderSet
    points: Mapping[str, OperatingPoint]
    """All operating points by name."""
    parameters_of: Mapping[str, int]
    """Operating point name -> parameters that run for each token that is kept."""
    context_length: int
    """Tokens of a prompt and what is generated together, or of a text, at most; 0 if it takes images."""
    vocab_size: int
    cache_bytes: int
    """Memory of the key-value cache."""
    predictor: OneShotConfig | None = None
    """What requests are checked against if it answers them as a whole."""
    item_tokens: int = 0
    """Tokens of an image or a text at most: it runs in one step."""
    image_input: ImageInput | None = None
    """How it wants images; None if it takes none."""

    @classmethod
    def of(cls, config: ModelConfig, files: ModelFiles, host: EngineHost) -> HostedModel:
        """A model whose engine, wherever it runs, was opened from these files."""
        ladders, units, stated = files.ladders, unit_parameters(files.config), files.config
        points = operating_points(ladders, units)
        decoder = stated if isinstance(stated, DecoderConfig) else None
        return cls(
            host=host,
            task=task_of(files),
            tokenizer=files.tokenizer,
            ladders=ladders,
            points=points,
            parameters_of={name: units.of(ladders.subnet(name)) for name in points},
            context_length=context_length(stated),
            vocab_size=stated.vocab_size,
            cache_bytes=cache_bytes(config, decoder) if decoder else 0,
            predictor=None if isinstance(stated, DecoderConfig) else stated,
            item_tokens=0 if isinstance(stated, DecoderConfig) else step_tokens(config, stated),
            image_input=files.image_input,
        )


OpenModel = Callable[[ModelConfig, EngineObserver], HostedModel]
"""Opens a model; its host is not started yet. Raises ValueError if it cannot."""


@dataclass(frozen=True)
class OpenedEngine:
    """An engine that nothing runs yet."""

    files: ModelFiles
    engine: Engine
    points: Mapping[str, OperatingPoint]
    """All operating points by name."""
    cost_model: StepCostModel
    """What the engine predicts its steps with."""


def rule_of_thumb(files: ModelFiles, points: Mapping[str, OperatingPoint]) -> StepCostModel:
    """What predicts the steps of a model that was not measured."""
    row_s = 2 * unit_parameters(files.config).of(files.ladders.architecture.full) / SAFE_FLOPS
    _log.info("%s: steps are predicted by rule of thumb, corrected while serving (profile: default)", files.name)
    return StepCostModel.linear(tuple(points.values()), row_s, SAFE_OVERHEAD_S)


def step_tokens(config: ModelConfig, stated: OneShotConfig) -> int:
    """Tokens of a step of a model that answers as a whole: as configured, but room for an image of its own size."""
    return max(config.predict_step_tokens, 0 if stated.vocab_size else stated.num_tokens((3, *stated.image_size)))


def context_length(config: DecoderConfig | OneShotConfig) -> int:
    """Tokens of a prompt and what is generated together, or of a text, at most; 0 if the model takes images."""
    return config.max_positions if isinstance(config, DecoderConfig) else config.max_tokens


def item_shape(config: OneShotConfig) -> tuple[int, ...]:
    """Of a typical item: an image of the model's own size, or a text."""
    if config.vocab_size:
        return (min(TEXT_TOKENS, config.max_tokens),)
    return 3, *config.image_size


def task_of(files: ModelFiles) -> Task:
    """What a model does."""
    return "generate" if isinstance(files.config, DecoderConfig) else files.config.task


def unit_parameters(config: DecoderConfig | OneShotConfig) -> UnitParameters:
    """Parameters of a model's units; biases and norms, a fraction of a percent, are left out."""
    if not isinstance(config, DecoderConfig):
        return UnitParameters(*config.unit_parameters)
    query_width = config.group_heads * config.head_dim
    return UnitParameters(
        attention_group=2 * config.hidden_size * (query_width + config.head_dim),
        ffn_channel=3 * config.hidden_size,
        head=config.vocab_size * config.hidden_size,
    )
