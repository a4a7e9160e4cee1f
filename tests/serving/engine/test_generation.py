"""One request at a time and many at once: tokens, ends, events."""

from __future__ import annotations

import pytest

from stepwell.models.sampling import SamplingParams
from stepwell.serving.engine.events import Outcome, TokenEvent
from stepwell.serving.errors import RequestError, Status


@pytest.mark.parametrize("point", ["depth:0", "depth:2", "width:0", "dropped:0", "dropped:1"])
def test_one_request_gets_the_models_output(make_world, fake, point: str) -> None:
    world = make_world()
    request = world.submit([5, 6, 7], 6, points=[point])
    world.run()
    assert world.tokens(request) == fake.reference([5, 6, 7], point, 6)
    end = world.end(request)
    assert (end.outcome, end.finish_reason, end.error) == (Outcome.MET, "length", None)


def test_requests_at_every_point_share_steps_and_not_results(make_world, fake) -> None:
    world = make_world(max_step_tokens=16)
    requests = {world.submit([1, 2, n], 5, points=[name]): (name, n) for n, name in enumerate(fake.points)}
    world.run()
    for request, (name, n) in requests.items():
        assert world.tokens(request) == fake.reference([1, 2, n], name, 5)
    assert max(len(steps) for _, steps in world.runner.calls) == len(requests)


def test_joining_a_running_batch_starts_at_once(make_world, fake) -> None:
    world = make_world()
    first = world.submit([1], 20)
    world.step(), world.step()
    second = world.submit([2], 3)
    world.step()
    assert {step.request_id for step in world.runner.calls[-1][1]} == {first, second}
    world.run()
    assert world.tokens(second) == fake.reference([2], "depth:2", 3)


def test_long_prompts_are_prefilled_in_chunks_beside_decodes(make_world, fake) -> None:
    world = make_world(max_step_tokens=8)
    decode = world.submit([1], 9)
    world.step()
    prompt = list(range(30))
    chunked = world.submit(prompt, 2)
    world.run()
    chunks = [(s.start, len(s.token_ids)) for _, steps in world.runner.calls for s in steps if s.request_id == chunked]
    assert chunks == [(0, 7), (7, 7), (14, 7), (21, 7), (28, 2), (30, 1)]
    kinds = [step.kind for step in world.observer.steps]
    assert kinds == ["prefill"] + ["mixed"] * 5 + ["decode"] * 3
    assert world.tokens(chunked) == fake.reference(prompt, "depth:2", 2)
    assert world.tokens(decode) == fake.reference([1], "depth:2", 9)


def test_end_of_sequence_token_ends_unless_ignored(make_world, fake) -> None:
    eos = {fake.reference([1], "depth:2", 3)[-1]}
    world = make_world(eos=eos)
    ended, going_on = world.submit([1], 6), world.submit([1], 6, ignore_eos=True)
    world.run()
    assert world.tokens(ended) == fake.reference([1], "depth:2", 3)
    assert world.tokens(going_on) == fake.reference([1], "depth:2", 6)
    assert (world.end(ended).finish_reason, world.end(going_on).finish_reason) == ("stop", "length")


def test_log_probabilities_only_on_request(make_world) -> None:
    world = make_world()
    with_them, without = world.submit(sampling=SamplingParams(logprobs=True)), world.submit()
    world.run()
    assert {e.logprobs for e in world.events[with_them] if isinstance(e, TokenEvent)} == {(-1.0,)}
    assert {e.logprobs for e in world.events[without] if isinstance(e, TokenEvent)} == {None}


def test_sample_index_counts_generated_tokens_whatever_the_steps(make_world) -> None:
    world = make_world(max_step_tokens=2)
    world.submit([1, 2, 3, 4, 5], 3)
    world.run()
    indices = [(len(s.token_ids), s.sampling is not None, s.sample_index) for _, [s] in world.runner.calls]
    assert indices == [(2, False, 0), (2, False, 0), (1, True, 0), (1, True, 1), (1, True, 2)]


def test_a_common_prefix_is_computed_once(make_world, fake) -> None:
    world, prompt = make_world(page_tokens=4), list(range(10))
    first = world.submit([*prompt, 77], 2)
    world.run()
    second, whole = world.submit([*prompt, 88], 2), world.submit(prompt[:8], 2, points=["depth:0"])
    world.run()
    assert world.tokens(second) == fake.reference([*prompt, 88], "depth:2", 2)
    assert world.tokens(whole) == fake.reference(prompt[:8], "depth:0", 2), "the last token is always run"
    assert [world.end(r).report.cached_tokens for r in (first, second, whole)] == [0, 8, 7]
    assert sum(step.cached_tokens for step in world.observer.steps) == 15


def test_prefixes_of_another_width_are_not_reused(make_world, fake) -> None:
    world, prompt = make_world(), list(range(9))
    world.submit(prompt, 1, points=["width:0"])
    world.run()
    wide = world.submit(prompt, 3, points=["width:1"])
    world.run()
    assert world.end(wide).report.cached_tokens == 0
    assert world.tokens(wide) == fake.reference(prompt, "width:1", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ()}, "prompt: empty"),
        ({"max_tokens": 0}, "max_tokens: must be >= 1, got 0"),
        ({"stop": ("x",)}, "stop: needs a tokenizer"),
        (
            {"prompt": range(10), "max_tokens": 200, "points": ["depth:2"]},
            "max_tokens: .* never fit the cache .*got 200",
        ),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(make_world, options, message: str) -> None:
    world = make_world(num_pages=100)
    with pytest.raises(RequestError, match=message) as refused:
        world.submit(**options)
    assert refused.value.code is Status.INVALID_ARGUMENT
    assert not world.engine.has_work


def test_a_request_too_long_for_large_points_is_served_at_one_that_fits(make_world, fake) -> None:
    world = make_world(num_pages=16, page_tokens=4)
    exact = world.submit(list(range(20)), 13, points=["depth:0", "depth:1", "depth:2"])  # 32 tokens: 8 blocks
    world.run()
    assert world.tokens(exact) == fake.reference(list(range(20)), "depth:1", 13)
    assert world.end(exact).report.degraded


def test_an_id_in_use_is_refused_and_may_be_used_again_later(make_world) -> None:
    world = make_world()
    world.submit(request_id="same")
    with pytest.raises(RequestError, match=r"id: .*'same'"):
        world.submit(request_id="same")
    world.run()
    world.submit(request_id="same")
    world.run()
    assert world.end("same").outcome is Outcome.MET
