"""The max_quality policy: order, level, token and page budget, admission."""

from __future__ import annotations

import pytest

from stepwell.schedulers.max_quality import MaxQuality
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.request import AGEING_S, PATIENCE_S, Phase


def plan(make, waiting=(), running=(), *, now=0.0, free_pages=1000, cost_model=None, **limits):
    policy = MaxQuality(Limits(**limits))
    return policy.plan(now, list(waiting), list(running), make.capacity(free_pages), cost_model)


def names(result) -> list[str]:
    return [s.request.request_id for s in result.slices]


def test_earliest_deadline_first(make) -> None:
    late, early, best_effort = make.request(deadline_s=9.0), make.request(ttft_s=2.0), make.request()
    assert names(plan(make, [best_effort, late, early])) == [r.request_id for r in (early, late, best_effort)]


def test_equal_deadlines_go_by_priority_then_arrival(make) -> None:
    requests = [
        make.request(hard_deadline_s=9.0, priority=p, arrival_s=a) for p, a in [(0, -1), (3, 0), (2, 0), (1, 0)]
    ]
    order = [requests[i].request_id for i in (3, 0, 2, 1)]
    assert names(plan(make, requests)) == order


def test_waiting_ages_past_more_urgent_classes(make) -> None:
    old = make.request(priority=3, deadline_s=5.0)
    assert make.request(priority=1, arrival_s=AGEING_S, deadline_s=5.0).rank_s < old.rank_s
    assert make.request(priority=1, arrival_s=2.5 * AGEING_S, deadline_s=5.0).rank_s > old.rank_s


def test_waiting_without_a_deadline_ages_past_classes_and_deadlines(make) -> None:
    old_low = make.request(priority=3, arrival_s=0.0)
    assert make.request(priority=1, arrival_s=2 * PATIENCE_S - 1).rank_s < old_low.rank_s
    assert make.request(priority=1, arrival_s=2 * PATIENCE_S + 1).rank_s > old_low.rank_s
    assert make.request(arrival_s=3 * PATIENCE_S, deadline_s=1.0).rank_s > old_low.rank_s


def test_level_is_the_best_allowed_unless_started_or_pinned(make) -> None:
    free, floor_only = make.request(), make.request(points=make.points[:2])
    pinned, put_back = make.request(points=make.points[:1]), make.request(running=True)
    put_back.phase, put_back.point = Phase.WAITING, make.points[1]
    served = {s.request: s.point for s in plan(make, [free, floor_only, pinned, put_back]).slices}
    assert served == dict(
        zip([free, floor_only, pinned, put_back], [make.points[i] for i in (2, 1, 0, 1)], strict=True)
    )


def test_decodes_come_before_prompts_which_share_the_rest(make) -> None:
    decode = make.request(running=True, prompt_tokens=8, computed_tokens=8, generated_tokens=1)
    chunked = make.request(running=True, prompt_tokens=20, computed_tokens=5, deadline_s=1.0)
    newcomer = make.request(prompt_tokens=20, deadline_s=2.0)
    result = plan(make, [newcomer], [decode, chunked], max_step_tokens=18)
    assert {s.request: s.num_tokens for s in result.slices} == {decode: 1, chunked: 15, newcomer: 2}
    assert names(result)[-1] == decode.request_id, "slices are in order of urgency all the same"
    assert names(plan(make, [newcomer], [decode, chunked], max_step_tokens=1)) == [decode.request_id]


def test_an_urgent_newcomer_overtakes_a_half_read_prompt(make) -> None:
    chunked = make.request(running=True, prompt_tokens=20, computed_tokens=5, deadline_s=9.0)
    urgent = make.request(prompt_tokens=6, deadline_s=1.0)
    result = plan(make, [urgent], [chunked], max_step_tokens=8)
    assert [(s.request, s.num_tokens) for s in result.slices] == [(urgent, 6), (chunked, 2)]


def test_nobody_overtakes_one_that_does_not_fit(make) -> None:
    running = make.request(running=True, prompt_tokens=4, computed_tokens=4, generated_tokens=1)
    big, small = make.request(prompt_tokens=40, deadline_s=1.0), make.request(prompt_tokens=1, deadline_s=2.0)
    assert names(plan(make, [small, big], [running], free_pages=20)) == [running.request_id]


def test_admission_leaves_every_running_sequence_a_block_to_grow(make) -> None:
    running = make.request(running=True, prompt_tokens=4, computed_tokens=4, generated_tokens=1)
    newcomer = make.request(prompt_tokens=8)  # at 3 layers: 2 blocks of its own, 1 to grow, 1 for the other
    assert len(plan(make, [newcomer], [running], free_pages=12).slices) == 2
    assert len(plan(make, [newcomer], [running], free_pages=11).slices) == 1
    assert len(plan(make, [newcomer], free_pages=6).slices) == 1, "alone it needs no room for others"


def test_expired_work_is_dropped_not_planned(make) -> None:
    expired, fine = make.request(deadline_s=1.0), make.request(deadline_s=5.0)
    late, dead = make.request(running=True, deadline_s=1.0), make.request(running=True, hard_deadline_s=2.0)
    result = plan(make, [expired, fine], [late, dead], now=3.0)
    assert {drop.request for drop in result.drops} == {expired, dead}
    assert {s.request for s in result.slices} == {late, fine}


def test_prediction_comes_from_the_cost_model(make) -> None:
    class PerToken:
        def foresee(self, slices):
            return 0.5 * sum(s.num_tokens for s in slices), lambda seconds: None

    assert plan(make, [make.request(prompt_tokens=6)], cost_model=PerToken()).predicted_s == 3.0
    assert plan(make, [make.request()]).predicted_s is None


@pytest.mark.parametrize("num_running", [2, 3])
def test_a_full_house_admits_nobody(make, num_running: int) -> None:
    running = [make.request(running=True, prompt_tokens=4, computed_tokens=3) for _ in range(num_running)]
    admitted = [s for s in plan(make, [make.request()], running, max_running=3).slices if s.request not in running]
    assert len(admitted) == 3 - num_running
