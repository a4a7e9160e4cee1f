"""When cache pages run out: the least urgent is put back, keeps its tokens, and gets the same output in the end."""

from __future__ import annotations

import pytest

from stepwell.schedulers.request import Phase
from stepwell.serving.engine.events import Outcome


def requests_of(world) -> dict:
    return {request.request_id: request for request in world.engine.running + world.engine.waiting}


def test_the_least_urgent_gives_way_and_is_recomputed_identically(make_world, fake) -> None:
    world = make_world(num_pages=24, page_tokens=4)  # at 3 layers: 8 blocks, 32 tokens
    relaxed = world.submit([1, 2, 3], 18, deadline_s=9.0)
    urgent = world.submit([4, 5, 6], 18, deadline_s=5.0)
    while not (put_back := [r for r in requests_of(world).values() if r.preemptions]):
        world.step()
    [victim] = put_back
    assert (victim.request_id, victim.phase, victim.computed_tokens) == (relaxed, Phase.WAITING, 0)
    generated = victim.generated_tokens
    assert 0 < generated < 18
    assert victim.known_tokens == 3 + generated
    world.run()
    assert world.tokens(relaxed) == fake.reference([1, 2, 3], "depth:2", 18)
    assert world.tokens(urgent) == fake.reference([4, 5, 6], "depth:2", 18)
    report = world.end(relaxed).report
    assert report.preemptions == 1
    assert world.end(urgent).report.preemptions == 0


def test_waiting_again_counts_as_queueing_too(make_world) -> None:
    world = make_world(num_pages=24, page_tokens=4)
    requests = [world.submit([n, 2, 3], 18) for n in range(2)]
    world.now += 0.5
    world.run()
    for report in (world.end(r).report for r in requests):
        assert report.queue_ms == pytest.approx(
            500.0 if not report.preemptions else report.total_ms - report.compute_ms
        )
    assert max(world.end(r).report.queue_ms for r in requests) > 501.0


def test_it_waits_in_order_of_arrival(make_world) -> None:
    world = make_world(num_pages=24, page_tokens=4, max_running=2)
    relaxed, urgent = world.submit([1], 20, deadline_s=9.0), world.submit([2], 20, deadline_s=5.0)
    world.step()
    world.now += 0.001
    newcomer = world.submit([3], 20)
    while world.engine.num_running == 2:
        world.step()
    assert [r.request_id for r in world.engine.waiting] == [relaxed, newcomer]
    world.run()
    assert world.end(urgent).report.preemptions == 0


def test_a_put_back_request_is_finished_even_if_its_target_passes_meanwhile(make_world, fake) -> None:
    world = make_world(num_pages=24, page_tokens=4)
    world.submit([4, 5, 6], 18, deadline_s=0.001)
    relaxed = world.submit([1, 2, 3], 18, deadline_s=0.01, queue_s=0.01)
    world.run()
    end = world.end(relaxed)
    assert end.report.preemptions
    assert end.outcome is Outcome.MISSED
    assert world.tokens(relaxed) == fake.reference([1, 2, 3], "depth:2", 18)


def test_it_is_recomputed_at_the_point_it_started_at(make_world, fake) -> None:
    world = make_world(num_pages=24, page_tokens=4)
    requests = [world.submit([n, 5], 20, points=["depth:1"]) for n in range(3)]
    world.run()
    assert sum(world.end(r).report.preemptions for r in requests)
    for n, request in enumerate(requests):
        assert world.tokens(request) == fake.reference([n, 5], "depth:1", 20)
        assert world.end(request).report.tokens_per_level == {"depth:1": 20}


def test_who_got_no_tokens_of_the_step_gives_way_first(make_world) -> None:
    world = make_world(num_pages=24, page_tokens=4, max_step_tokens=2)
    world.submit([1], 20, deadline_s=6.0)
    world.step()
    stalled = world.submit(list(range(8)), 1, deadline_s=9.0)
    world.step()  # decodes take the whole step from now on; this one has one token of its prompt done
    world.submit([2], 20, deadline_s=5.0)
    while not (put_back := [r for r in world.engine.waiting if r.preemptions]):
        world.step()
    assert [r.request_id for r in put_back] == [stalled]
    world.run()


def test_two_that_give_way_in_one_step_both_wait(make_world, fake) -> None:
    # The first frees too little; once the second is gone there would be room for the first, but it was just put back.
    world = make_world(num_pages=20, page_tokens=4)
    urgent, large = world.submit([1], 12, deadline_s=5.0), world.submit(list(range(9)), 12, deadline_s=6.0)
    small = world.submit([2], 12, deadline_s=7.0, points=["depth:0"])
    world.step()
    while not world.engine.waiting:
        world.step()
    assert {r.request_id for r in world.engine.waiting} == {large, small}
    world.run()
    assert world.tokens(urgent) == fake.reference([1], "depth:2", 12)
    assert world.tokens(large) == fake.reference(list(range(9)), "depth:2", 12)
    assert world.tokens(small) == fake.reference([2], "depth:0", 12)


def test_flipping_urgency_does_not_make_requests_oust_each_other_forever(make_world, fake) -> None:
    # Each token moves a request's next due time behind the others', so urgency flips all the time.
    world = make_world(num_pages=24, page_tokens=4)
    requests = [world.submit([n], 29, ttft_s=1.0, tpot_s=0.01) for n in range(4)]
    world.run(max_steps=29 * 4 + 10)
    for n, request in enumerate(requests):
        assert world.tokens(request) == fake.reference([n], "depth:2", 29)
    assert sum(world.end(r).report.preemptions for r in requests) <= 12


def test_one_request_may_fill_the_whole_cache(make_world, fake) -> None:
    world, prompt = make_world(num_pages=12, page_tokens=4, max_step_tokens=3), list(range(10))
    requests = [world.submit(prompt, 7) for _ in range(3)]  # 16 computed tokens: all 4 blocks of 3 layers
    world.run()
    for request in requests:
        assert world.tokens(request) == fake.reference(prompt, "depth:2", 7)


def test_a_prompt_that_fills_the_cache_can_be_asked_again(make_world, fake) -> None:
    # Its prefix is all cached, and its last block must be copied although there is no page to spare.
    world, prompt = make_world(num_pages=12, page_tokens=4), list(range(16))
    for _ in range(3):
        request = world.submit(prompt, 1)
        world.run()
        assert world.tokens(request) == fake.reference(prompt, "depth:2", 1)
