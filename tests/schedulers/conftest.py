"""Requests, points and capacities made by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from stepwell.schedulers.correction import OnlineCorrection, Spread
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Capacity
from stepwell.schedulers.request import SLO, OperatingPoint, Phase, Request

POINTS = tuple(OperatingPoint(cost / 4, cost / 4, "depth", level) for level, cost in enumerate((1, 2, 4)))


def _request(
    *,
    arrival_s: float = 0.0,
    prompt_tokens: int = 8,
    max_tokens: int = 4,
    unit_tokens: int = 1,
    points: tuple[OperatingPoint, ...] = POINTS,
    running: bool = False,
    computed_tokens: int = 0,
    generated_tokens: int = 0,
    first_token_s: float = math.nan,
    hard_deadline_s: float = math.inf,
    queue_deadline_s: float = math.inf,
    may_switch: bool = False,
    point: OperatingPoint | None = None,
    exit_tokens: dict[OperatingPoint, int] | None = None,
    ids: itertools.count[int] = itertools.count(),  # noqa: B008 - one counter for all
    **slo: Any,
) -> Request:
    request = Request(
        request_id=f"r{next(ids)}",
        arrival_s=arrival_s,
        slo=SLO(**slo),
        points=points,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        unit_tokens=unit_tokens,
        hard_deadline_s=hard_deadline_s,
        queue_deadline_s=queue_deadline_s,
        may_switch=may_switch,
    )
    request.generated_tokens = generated_tokens
    request.known_tokens = prompt_tokens + generated_tokens
    request.first_token_s = first_token_s
    if running:
        request.phase, request.point, request.started_s = Phase.RUNNING, point or points[-1], arrival_s
        request.computed_tokens = computed_tokens
        request.exit_tokens = exit_tokens or {}
    return request


def _capacity(free_pages: int = 1000, page_tokens: int = 4) -> Capacity:
    return Capacity(free_pages, 1000, page_tokens, {point.name: point.level + 1 for point in POINTS})


def _decoding(**kwargs: Any) -> Request:
    """Running, with its prompt read and tokens generated (one unless told)."""
    generated = kwargs.setdefault("generated_tokens", 1)
    computed = kwargs.get("prompt_tokens", 8) + generated - 1
    return _request(running=True, computed_tokens=computed, **{"first_token_s": 0.0, **kwargs})


class Exact(OnlineCorrection):
    """The machine is exactly as fast as the profile says, or ``slowness`` times slower; a step in ten takes ``upper``
    times as long as that."""

    def __init__(self, slowness: float = 1.0, upper: float = 1.0) -> None:
        super().__init__()
        self._slowness, self._upper = slowness, slowness * upper
        self.overall = Spread(slowness, slowness * upper)

    def median(self, kind: str) -> float:
        return self._slowness

    def upper(self, kind: str) -> float:
        return self._upper


def _model(
    points: Sequence[OperatingPoint] = POINTS, *, row_s: float = 0.004, slowness: float = 1.0, upper: float = 1.0
) -> StepCostModel:
    """A row takes ``row_s`` at the full model, its share of that at smaller points, a step 1 ms besides."""
    model = StepCostModel.linear(points, full_row_s=row_s, overhead_s=0.001)
    model.correction = Exact(slowness, upper)
    model.answer_way.seconds = 0.0
    return model


def _situations() -> st.SearchStrategy[dict[str, Any]]:
    """What a policy decides from, as arguments: requests of all kinds and stages, limits, free pages."""
    return _situation()


@st.composite
def _situation(draw: st.DrawFn) -> dict[str, Any]:
    times = st.one_of(st.just(math.inf), st.integers(1, 9).map(float))
    spans = st.sampled_from([POINTS, POINTS[1:], POINTS[:2], POINTS[1:2]])

    def request(running: bool) -> dict[str, Any]:
        prompt, points = draw(st.integers(1, 12)), draw(spans)
        max_tokens = draw(st.integers(1, 5))
        generated = draw(st.integers(0, min(2, max_tokens - 1))) if running else 0
        computed = prompt + generated - 1 if generated else draw(st.integers(0, prompt - 1)) if running else 0
        point = draw(st.sampled_from(points))
        kept = draw(st.integers(0, computed)) if running else 0
        return {
            "running": running, "prompt_tokens": prompt, "generated_tokens": generated, "computed_tokens": computed,
            "max_tokens": max_tokens, "first_token_s": 0.0, "arrival_s": draw(st.integers(-3, 3)) * 1.0,
            "deadline_s": draw(times), "ttft_s": draw(times), "tpot_s": draw(times),
            "priority": draw(st.integers(0, 3)), "hard_deadline_s": draw(times), "queue_deadline_s": draw(times),
            "points": points, "may_switch": draw(st.booleans()), "point": point if running else None,
            "exit_tokens": {point: kept} if kept and point is not points[-1] else {},
        }  # fmt: skip

    running = [request(True) for _ in range(draw(st.integers(0, 5)))]
    limits = {"max_step_tokens": draw(st.integers(1, 20)), "max_running": draw(st.integers(max(1, len(running)), 6))}
    waiting = [request(False) for _ in range(draw(st.integers(0, 6)))]
    return {"waiting": waiting, "running": running, "free_pages": draw(st.integers(0, 60)), "limits": limits}


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """``make.request(...)``, ``decoding(...)``, ``capacity(...)``, ``model(...)``, ``situations()``; ``points``: of
    them, k holds pages in k + 1 layers."""
    return SimpleNamespace(
        request=_request, decoding=_decoding, capacity=_capacity, model=_model, points=POINTS, situations=_situations
    )
