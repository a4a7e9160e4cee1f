"""The runner of a model that answers as a whole: the items of a step in one packed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from stepwell.models.ladder import LadderSet, Level
from stepwell.models.one_shot import Item, ItemOutput, OneShotModel
from stepwell.serving.engine.job import Array
from stepwell.serving.engine.step import ItemResult, ItemStep


class PredictorRunner:
    """Runs steps (see :class:`~stepwell.serving.engine.step.Runner`)."""

    def __init__(self, model: OneShotModel, ladders: LadderSet) -> None:
        self.model = model
        self._levels: dict[str, Level] = {
            ladder.point_name(k): level for ladder in ladders.ladders.values() for k, level in enumerate(ladder.levels)
        }

    def run(self, steps: Sequence[ItemStep]) -> Mapping[str, list[ItemResult]]:
        """Compute ``steps`` in one packed batch; one result an item, by request id.

        What one step wants is computed for all, and the rest thrown away: requests seldom differ in it.
        """
        wanted = tuple(dict.fromkeys(name for step in steps for name in step.outputs))
        items = [item_of(data, self._levels[step.point.name]) for step in steps for data in step.items]
        outputs = iter(self.model.run(items, wanted))
        return {step.request_id: [_result(next(outputs), step.outputs) for _ in step.items] for step in steps}


def item_of(data: Array, level: Level) -> Item:
    """An item of a job as the model takes it."""
    if not data.flags.writeable:  # torch has no tensors that may only be read, and complains
        data = data.copy()
    tensor = torch.from_numpy(data)
    if data.dtype == np.float32:
        return Item(tensor, level.subnet, level.reduction)
    rows = tensor.long()
    ids, types = (rows, None) if rows.ndim == 1 else rows.unbind()
    return Item(ids, level.subnet, level.reduction, types)


def _result(output: ItemOutput, names: Sequence[str]) -> ItemResult:
    return ItemResult(tuple([output.tensors[name].numpy() for name in names]), output.tokens_kept)
