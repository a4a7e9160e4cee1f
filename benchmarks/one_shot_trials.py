"""Random batches of images and texts for ``benchmarks/prediction.py``: what a server of such models runs in a step."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from encoders import NUM_LAYERS
from transformers import BertConfig, BertModel

from stepwell.models.loader import read_files
from stepwell.models.one_shot import Item
from stepwell.schedulers.plan import Slice
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.config import ModelConfig
from stepwell.serving.hosted import item_shape
from stepwell.serving.predictor_hosting import (
    Predictor,
    measure_predictor,
    prepare_predictor,
    warm_up_predictor,
)
from stepwell.serving.profiles import PredictorProfile, profile_key

MAX_TEXT_TOKENS = 1024
"""Of a batch of texts."""
LONGEST = 512
MOST_IMAGES = 48
LADDER = {"default": "depth", "ladders": {"depth": {"levels": [{"layers": n + 1} for n in range(NUM_LAYERS)]}}}


@dataclass(frozen=True)
class ItemTrial:
    """A request of one item."""

    slice: Slice
    item: Item


@dataclass(frozen=True)
class ItemRunner:
    """Runs batches as a server does."""

    predictor: Predictor

    @contextmanager
    def prepared(self, trial: Sequence[ItemTrial]) -> Iterator[Callable[[], object]]:
        """What runs the batch."""
        wanted = tuple(name for name in ("logits", "embedding") if name in self.predictor.config.outputs)[:1]
        items = [each.item for each in trial]
        yield lambda: self.predictor.model.run(items, wanted)


def open_predictor(config: ModelConfig) -> tuple[Predictor, PredictorProfile]:
    """The model as it would be served, and its profile, freshly measured."""
    predictor = prepare_predictor(config, read_files(config.source))
    key = profile_key(predictor.files.path, predictor.model.dtype, config.packed_weights_ratio)
    profile = measure_predictor(config, predictor, key)
    warm_up_predictor(predictor)
    return predictor, profile


def save_encoder(folder: Path) -> None:
    """A BERT of the base model's shapes, with few layers and random weights, and a ladder of depths."""
    torch.manual_seed(0)
    BertModel(BertConfig(num_hidden_layers=NUM_LAYERS), add_pooling_layer=False).save_pretrained(folder)
    (folder / "ladder.json").write_text(json.dumps({"format": 1, **LADDER}))


def random_batch(rng: random.Random, predictor: Predictor) -> list[ItemTrial]:
    """Images, 1 to ``MOST_IMAGES``, or texts of log-normal lengths; at one, two or all points of the default ladder."""
    default = predictor.files.ladders.default
    points = sorted(point for point in predictor.points.values() if point.ladder == default)
    chosen = rng.sample(points, rng.choice((1, 2, len(points))))
    config = predictor.config
    if not config.vocab_size:
        count = round(MOST_IMAGES ** rng.random())
        return [_trial(predictor, torch.randn(item_shape(config)), rng.choice(chosen)) for _ in range(count)]
    left, typical = round(MAX_TEXT_TOKENS ** rng.uniform(0.6, 1.0)), rng.choice((16, 48, 128))
    trial: list[ItemTrial] = []
    while left > 3:
        length = min(left, LONGEST, max(4, round(rng.lognormvariate(0.0, 0.6) * typical)))
        trial.append(_trial(predictor, torch.randint(config.vocab_size, (length,)), rng.choice(chosen)))
        left -= length
    return trial


def _trial(predictor: Predictor, data: torch.Tensor, point: OperatingPoint) -> ItemTrial:
    level = predictor.files.ladders.level(point.name)
    num_tokens = predictor.config.num_tokens(tuple(data.shape))
    request = Request("", 0.0, SLO(), (point,), num_tokens, 1, unit_tokens=num_tokens)
    return ItemTrial(Slice(request, num_tokens, point), Item(data, level.subnet, level.reduction))
