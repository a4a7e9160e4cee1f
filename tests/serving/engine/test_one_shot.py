"""Requests that are answered as a whole, through the real engine in virtual time, with a model whose answers can be
checked by hand: twice each number, and the point's cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.models.cache import PagedKVCache
from stepwell.models.ladder import Architecture, parse_ladders
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import SLO, Request
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.events import FinishEvent, Outcome, ResultEvent
from stepwell.serving.engine.job import OneShotJob
from stepwell.serving.engine.points import UnitParameters, operating_points
from stepwell.serving.engine.step import ItemResult, ItemStep
from stepwell.serving.errors import RequestError
from stepwell.serving.predictor_hosting import without_keys

LADDERS = parse_ladders(
    {
        "format": 1,
        "ladders": {"merge": {"reducer": "merge", "levels": [{"budget": 0.5, "quality": 0.7}, {}]}},
    },
    Architecture(3, 2, 8, frozenset({"merge"})),
)
POINTS = operating_points(LADDERS, UnitParameters(4, 3))
MAX_STEP_TOKENS = 24


class DoublingRunner:
    """Takes a second a step. ``faults``: calls (from 0) that raise; items with a negative number always do."""

    def __init__(self, faults: Sequence[int] = ()) -> None:
        self.now, self.faults, self.num_calls = 0.0, faults, 0
        self.sizes: list[int] = []

    def run(self, steps: Sequence[ItemStep]) -> dict[str, list[ItemResult]]:
        self.now += 1.0
        self.num_calls += 1
        self.sizes.append(sum(step.num_tokens for step in steps))
        if self.num_calls - 1 in self.faults or any(item.min() < 0 for step in steps for item in step.items):
            raise RuntimeError("injected")
        return {
            step.request_id: [
                ItemResult((2 * item + step.point.cost,), round(len(item) * step.point.token_budget))
                for item in step.items
            ]
            for step in steps
        }


def make_engine(runner: DoublingRunner, policy: str = "max_quality") -> Engine:
    limits = Limits(MAX_STEP_TOKENS, max_running=3)
    return Engine(
        runner=runner,
        cache=PagedKVCache(3, 1, 1, 1, with_storage=False),
        policy=create_policy(policy, limits),
        tokenizer=None,
        ladders=without_keys(LADDERS),
        limits=limits,
        eos_token_ids=(),
        clock=lambda: runner.now,
    )


def job(name: str, items: Sequence[np.ndarray], point: str = "merge:1", deadline_s: float = float("inf")) -> OneShotJob:
    sizes = {len(item) for item in items}
    total = sum(len(item) for item in items)
    unit = sizes.pop() if len(sizes) == 1 else total
    request = Request(name, 0.0, SLO(deadline_s=deadline_s), (POINTS[point],), total, 1, unit_tokens=unit)
    return OneShotJob(request, tuple(items), ("logits",))


def serve(engine: Engine, jobs: Sequence[OneShotJob]) -> dict[str, list]:
    events: dict[str, list] = {each.request.request_id: [] for each in jobs}
    for each in jobs:
        engine.submit(each, events[each.request.request_id].append)
    for _ in range(500):
        if not engine.has_work:
            break
        engine.step()
        engine.check_integrity()
    assert not engine.has_work
    return events


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 5), st.sampled_from(sorted(POINTS))), max_size=8),
    faults=st.lists(st.integers(0, 6), max_size=2),
    policy=st.sampled_from(["max_quality", "staircase", "fixed:min", "slack_fit", "max_throughput"]),
)
def test_every_item_is_answered_once_whatever_happens(shapes, faults, policy) -> None:
    runner = DoublingRunner(faults)
    rng = np.random.default_rng(0)
    jobs = [
        job(f"r{i}", [rng.normal(size=size) ** 2 for _ in range(count)], point)
        for i, (size, count, point) in enumerate(shapes)
    ]
    events = serve(make_engine(runner, policy), jobs)
    assert max(runner.sizes, default=0) <= MAX_STEP_TOKENS
    for each in jobs:
        *results, finish = events[each.request.request_id]
        assert isinstance(finish, FinishEvent)
        if finish.outcome is Outcome.FAILED:  # a step of this request alone was one of those that raise
            assert faults
            assert not results
            continue
        (result,) = results
        assert isinstance(result, ResultEvent)
        assert (finish.outcome, finish.finish_reason) == (Outcome.MET, "complete")
        point = each.request.points[0]
        for item, answer in zip(each.items, result.items, strict=True):
            np.testing.assert_array_equal(answer.arrays[0], 2 * item + point.cost)
        kept = sum(round(len(item) * point.token_budget) for item in each.items)
        assert (finish.report.tokens_kept, finish.report.quality) == (kept, point.quality)
        assert finish.report.operating_point == point.name


def test_a_request_larger_than_a_step_takes_several() -> None:
    runner = DoublingRunner()
    events = serve(make_engine(runner), [job("r", [np.ones(10)] * 5)])
    assert runner.sizes == [20, 20, 10]
    assert len(events["r"][0].items) == 5


def test_items_of_different_lengths_run_together() -> None:
    runner = DoublingRunner()
    serve(make_engine(runner), [job("r", [np.ones(7), np.ones(3), np.ones(11)])])
    assert runner.sizes == [21]


def test_an_item_that_cannot_be_computed_ends_its_request_alone() -> None:
    jobs = [job("good", [np.ones(4)]), job("bad", [np.ones(4), -np.ones(4)]), job("other", [np.ones(4)])]
    events = serve(make_engine(DoublingRunner()), jobs)
    assert [events[name][-1].outcome for name in ("good", "bad", "other")] == [
        Outcome.MET,
        Outcome.FAILED,
        Outcome.MET,
    ]


def test_what_is_cancelled_or_late_is_not_computed() -> None:
    runner = DoublingRunner()
    engine = make_engine(runner)
    jobs = [job("first", [np.ones(24)]), job("late", [np.ones(24)], deadline_s=0.5), job("gone", [np.ones(24)])]
    events: dict[str, list] = {}
    for each in jobs:
        engine.submit(each, events.setdefault(each.request.request_id, []).append)
    engine.cancel("gone")
    runner.now = 0.6
    while engine.has_work:
        engine.step()
    assert runner.sizes == [24]
    assert [events[name][-1].outcome for name in ("first", "late", "gone")] == [
        Outcome.MET,
        Outcome.EXPIRED,
        Outcome.CANCELLED,
    ]


def test_an_id_in_use_is_refused() -> None:
    engine = make_engine(DoublingRunner())
    engine.submit(job("r", [np.ones(4)]), lambda event: None)
    with pytest.raises(RequestError, match="id: is in use"):
        engine.submit(job("r", [np.ones(4)]), lambda event: None)
