"""A small model to simulate, whose steps can be timed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stepwell.models.ladder import Architecture, parse_ladders
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Limits
from stepwell.serving.config import SLOClass
from stepwell.serving.engine.points import UnitParameters, operating_points
from stepwell.serving.predictor_hosting import without_keys
from stepwell.serving.replay.items import ItemTokens
from stepwell.serving.replay.simulate import Setup, SimModel
from stepwell.serving.replay.workload import Arrival, Workload

OVERHEAD_S, ROW_S = 0.01, 0.001
CLASSES = {
    "tight": SLOClass(ttft_ms=50.0, tpot_ms=20.0, priority=1),
    "relaxed": SLOClass(deadline_ms=2000.0, priority=3),
    "default": SLOClass(),
}


@pytest.fixture
def make_setup() -> Callable[..., Setup]:
    """``make_setup(policy, num_pages, max_running=.., ..)``: a step at full size takes 10 ms, and 1 ms a token.
    ``items``: of a model that answers as a whole."""

    def make(
        policy: str = "max_quality",
        num_pages: int = 4000,
        slowness: float = 1.0,
        items: ItemTokens | None = None,
        **options: Any,
    ) -> Setup:
        ladders = parse_ladders(
            {"format": 1, "default": "depth", "ladders": {
                "depth": {"kv": "exact", "levels": [{"layers": n, "quality": n / 3} for n in (1, 2, 3)]}}},
            Architecture(num_layers=3, num_kv_groups=2, ffn_channels=8),
        )  # fmt: skip
        points = operating_points(ladders, UnitParameters(attention_group=4, ffn_channel=3))
        if items is not None:
            ladders = without_keys(ladders)
        costs = StepCostModel.linear(list(points.values()), slowness * ROW_S, slowness * OVERHEAD_S)
        model = SimModel(ladders, points, costs, num_pages, 4, vocab_size=100, context_length=200, items=items)
        limits = Limits(**{name: options.pop(name) for name in list(options) if name.startswith("max_")})
        return Setup(model, policy, CLASSES, limits, **options)

    return make


@pytest.fixture
def make_workload() -> Callable[..., Workload]:
    """``make_workload((at_s, prompt, output, slo_class?), ..)``."""

    def make(*arrivals: tuple[Any, ...]) -> Workload:
        return Workload.of("made", [Arrival(*arrival) for arrival in arrivals])

    return make
