"""When cache pages run out: the least urgent is put back, keeps its tokens, and gets the same output in the end."""

from __future__ import annotations

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
    assert report.queue_ms > 0.0, "waiting again counts"
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


def test_flipping_urgency_does_not_make_two_requests_oust_each_other_forever(make_world, fake) -> None:
    # Each token moves a request's next due time behind the other's, so urgency flips all the time.
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
