"""SlackFit: buckets, then the largest batch, then the best level; one level for the whole step."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.schedulers.plan import Limits
from stepwell.schedulers.slack_fit import SlackFit, fit, slack_s

LATENCIES = np.array([[1.0, 2.0, 4.0], [1.5, 3.0, 8.0]])
"""Of batches of one and two, at three levels."""


PAIRS = [
    (9.0, (2, 2)), (7.9, (1, 2)), (3.9, (2, 1)), (2.9, (1, 1)), (1.9, (2, 0)), (1.2, (1, 0)),
    (0.1, (1, 0)), (-5, (1, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("slack", "pair"), PAIRS)
def test_the_highest_bucket_within_the_slack(slack: float, pair: tuple[int, int]) -> None:
    assert fit(LATENCIES, slack) == pair


def test_in_a_bucket_the_largest_batch_wins_then_the_level() -> None:
    assert fit(np.array([[1.0, 4.0], [1.01, 4.0], [1.02, 100.0]]), 50.0) == (2, 1), "both batches take 4 s"
    assert fit(np.array([[1.0, 1.01], [1.02, 1.03], [9.0, 100.0]]), 5.0) == (2, 1), "one bucket, up to 2.5 s"


def plan(make, waiting=(), running=(), **limits):
    return SlackFit(Limits(**limits)).plan(0.0, list(waiting), list(running), make.capacity(), make.model())


@pytest.mark.parametrize(("ttft_s", "level"), [(1.0, 2), (0.04, 2), (0.03, 1), (0.012, 0)])
def test_the_earliest_deadline_sets_the_level_of_all(make, ttft_s: float, level: int) -> None:
    first = make.request(prompt_tokens=8, ttft_s=ttft_s, may_switch=True)
    others = [make.request(prompt_tokens=8, ttft_s=9.0, may_switch=True) for _ in range(3)]
    result = plan(make, [*others, first])
    assert result.slices[0].request is first
    assert {s.point.level for s in result.slices} <= {level, 0}
    assert len({s.point for s in result.slices}) == 1


def test_who_may_not_switch_or_kept_exit_states_stays(make) -> None:
    stuck = make.decoding(point=make.points[0])
    kept = make.decoding(point=make.points[0], may_switch=True, exit_tokens={make.points[0]: 8})
    free = make.decoding(point=make.points[0], may_switch=True)
    assert {s.request: s.point.level for s in plan(make, running=[stuck, kept, free]).slices} == {
        stuck: 0,
        kept: 0,
        free: 2,
    }


def test_a_long_prompt_divides_its_slack_among_its_steps(make) -> None:
    assert slack_s(make.request(prompt_tokens=20, ttft_s=1.0), 0.2, max_step_tokens=8) == pytest.approx(0.8 / 3)


def test_while_the_most_urgent_waits_for_pages_those_that_run_go_on(make) -> None:
    urgent, runs = make.request(prompt_tokens=8, ttft_s=0.0001), [make.decoding(may_switch=True) for _ in range(6)]
    policy = SlackFit(Limits())
    assert policy.plan(0.0, [urgent], [], make.capacity(free_pages=0), make.model()).slices[0].request is urgent
    result = policy.plan(0.0, [urgent], runs, make.capacity(free_pages=0), make.model())
    assert {s.request for s in result.slices} == {*runs}
