"""Requests, points and capacities made by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from stepwell.schedulers.plan import Capacity
from stepwell.schedulers.request import SLO, OperatingPoint, Phase, Request

POINTS = tuple(OperatingPoint(cost / 4, cost / 4, "depth", level) for level, cost in enumerate((1, 2, 4)))


def _request(
    *,
    arrival_s: float = 0.0,
    prompt_tokens: int = 8,
    max_tokens: int = 4,
    points: tuple[OperatingPoint, ...] = POINTS,
    running: bool = False,
    computed_tokens: int = 0,
    generated_tokens: int = 0,
    first_token_s: float = math.nan,
    hard_deadline_s: float = math.inf,
    queue_deadline_s: float = math.inf,
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
        hard_deadline_s=hard_deadline_s,
        queue_deadline_s=queue_deadline_s,
    )
    request.generated_tokens = generated_tokens
    request.known_tokens = prompt_tokens + generated_tokens
    request.first_token_s = first_token_s
    if running:
        request.phase, request.point, request.started_s = Phase.RUNNING, points[-1], arrival_s
        request.computed_tokens = computed_tokens
    return request


def _capacity(free_pages: int = 1000, page_tokens: int = 4) -> Capacity:
    return Capacity(free_pages, 1000, page_tokens, {point.name: point.level + 1 for point in POINTS})


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """``make.request(...)``, ``make.capacity(...)``, ``make.points``: point k holds pages in k + 1 layers."""
    request: Callable[..., Request] = _request
    return SimpleNamespace(request=request, capacity=_capacity, points=POINTS)
