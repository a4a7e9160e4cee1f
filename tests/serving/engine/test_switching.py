"""Levels that change in mid-generation, through the engine: every token is its own level's, and the books are right."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.decoder import Decoder
from stepwell.models.sampling import SamplingParams
from stepwell.schedulers.max_quality import MaxQuality
from stepwell.schedulers.plan import Limits, Slice, StepPlan
from stepwell.schedulers.request import SLO, Request
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine.events import TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.points import may_switch
from stepwell.serving.errors import RequestError
from stepwell.serving.hosting import open_in_thread

DEPTH = ("depth:0", "depth:1", "depth:2")
MIXED = ("mixed:0", "mixed:1", "mixed:2", "mixed:3")


class Drifting(MaxQuality):
    """Its base class, but at the point that ``choose`` says for everyone who may switch."""

    def __init__(self, choose: Callable[[Request], Any], limits: Limits | None = None) -> None:
        super().__init__(limits or Limits())
        self.choose = choose

    def plan(self, *state: Any) -> StepPlan:
        plan = super().plan(*state)
        return replace(plan, slices=[self._moved(s) if s.request.may_switch else s for s in plan.slices])

    def _moved(self, slice_: Slice) -> Slice:
        return Slice(slice_.request, slice_.num_tokens, self.choose(slice_.request))


class Books:
    """Follows the runner's calls: what each token of each sequence has run, and what it should have said."""

    def __init__(self, fake: Any, world: Any) -> None:
        self.fake, self.world, self.num_read = fake, world, 0
        self.units: dict[int, list[Any]] = {}
        """By sequence in the cache."""
        self.history: dict[str, list[int]] = {}
        self.said: dict[str, dict[int, tuple[int, str]]] = {}
        """By request: token and point of each generated token."""
        self.sequence_of: dict[str, int] = {}

    def read(self, prompts: dict[str, list[int]]) -> None:
        calls = list(enumerate(self.world.runner.calls))
        for number, (_, steps) in calls[self.num_read :]:
            for step in steps:
                if number not in self.world.runner.faults:
                    self._read(step, prompts[step.request_id])
        self.num_read = len(calls)

    def _read(self, step: Any, prompt: list[int]) -> None:
        units = self.units.setdefault(step.pages.sequence_id, [step.pages.subnet] * step.start)
        assert len(units) == step.start
        self.sequence_of[step.request_id] = step.pages.sequence_id
        history = self.history.setdefault(step.request_id, list(prompt))
        self.units[step.pages.sequence_id] = [
            ran if ran.depth >= step.subnet.depth else self.fake.risen(ran, step.subnet, ran.depth) for ran in units
        ] + [step.subnet] * len(step.token_ids)
        end = step.start + len(step.token_ids)
        assert list(step.token_ids) == history[step.start : end]
        if step.sampling is not None:
            token = self.fake.next_token(history[:end], self.units[step.pages.sequence_id], step.subnet)
            self.said.setdefault(step.request_id, {})[step.sample_index] = (token, step.point.name)
            history.append(token)

    def exit_tokens(self, request: Request) -> dict[str, int]:
        """By depth; empty if it may not switch."""
        if not request.may_switch or request.request_id not in self.sequence_of or not request.computed_tokens:
            return {}
        deepest = max(self.fake.ladders.subnet(point.name).depth for point in request.points)
        depths = [units.depth for units in self.units[self.sequence_of[request.request_id]]]
        return {depth: depths.count(depth) for depth in sorted(set(depths)) if depth < deepest}


def kept_by_depth(fake: Any, request: Request) -> dict[int, int]:
    counts: dict[int, int] = {}
    for point, count in request.exit_tokens.items():
        assert point in request.points
        depth = fake.ladders.subnet(point.name).depth
        counts[depth] = counts.get(depth, 0) + count
    return dict(sorted(counts.items()))


requests = st.fixed_dictionaries(
    {
        "prompt": st.tuples(
            st.sampled_from([(), (1, 2, 3, 4, 5, 6), tuple(range(40, 52))]),
            st.lists(st.integers(0, 9), min_size=1, max_size=6),
        ).map(lambda parts: [*parts[0], *parts[1]]),
        "max_tokens": st.integers(1, 14),
        "points": st.sampled_from([DEPTH, DEPTH, DEPTH[1:], DEPTH[:2], MIXED, MIXED[:2], ("depth:1",), ("dropped:1",)]),
        "switching": st.sampled_from([True, True, True, False]),
        "steps_before": st.integers(0, 4),
    },
    optional={"deadline_s": st.integers(1, 60).map(lambda ms: ms / 1000)},
)


@given(
    asked=st.lists(requests, min_size=1, max_size=8),
    num_pages=st.integers(24, 70),
    page_tokens=st.sampled_from([1, 3, 4]),
    max_step_tokens=st.integers(1, 24),
    faults=st.sets(st.integers(0, 20), max_size=1),
    cancelled=st.one_of(st.none(), st.integers(0, 7)),
    seed=st.integers(0, 99),
)
def test_every_token_is_what_its_level_says_and_the_books_are_right(
    fake, asked, num_pages, page_tokens, max_step_tokens, faults, cancelled, seed
) -> None:
    draw = random.Random(seed)
    limits = Limits(max_step_tokens=max_step_tokens, max_running=5)
    policy = Drifting(lambda request: draw.choice(request.points), limits)
    world = fake.World(policy=policy, num_pages=num_pages, page_tokens=page_tokens, faults=faults, max_step_tokens=24)
    books, prompts, wishes = Books(fake, world), {}, {}

    def step() -> None:
        world.step()
        books.read(prompts)
        for request in [*world.engine.running, *world.engine.waiting]:
            assert kept_by_depth(fake, request) == books.exit_tokens(request)

    for wish in asked:
        steps_before = wish.pop("steps_before")
        with contextlib.suppress(RequestError):  # longer than the cache
            request_id = world.submit(**wish)
            prompts[request_id], wishes[request_id] = wish["prompt"], wish
        for _ in range(steps_before):
            step()
    if cancelled is not None:
        world.engine.cancel(f"r{cancelled}")
    for _ in range(1000):
        if not world.engine.has_work:
            break
        step()
    assert not world.engine.has_work
    for request_id, wish in wishes.items():
        check_end(fake, world.end(request_id), world.tokens(request_id), books.said.get(request_id, {}), wish)
    assert all(request.exit_tokens == {} for _, request in world.observer.finished)
    world.close()


def check_end(fake: Any, end: Any, tokens: list[int], said: dict[int, tuple[int, str]], wish: dict[str, Any]) -> None:
    report = end.report
    assert tokens == [said[i][0] for i in range(len(tokens))]
    served = [said[i][1] for i in range(len(tokens))]
    assert set(served) <= set(wish["points"])
    assert report.tokens_per_level == {name: served.count(name) for name in dict.fromkeys(served)}
    assert sum(report.tokens_per_level.values()) == report.generated_tokens == len(tokens)
    if served:
        assert report.quality == pytest.approx(sum(fake.points[name].quality for name in served) / len(served))
        assert report.degraded == any(name != wish["points"][-1] for name in served)
    if not wish["switching"]:
        assert len(set(served)) <= 1
    if end.error is None and wish["points"][0].startswith("depth"):  # exact: as if it had been there all along
        check_exact(fake, wish["prompt"], tokens, [fake.ladders.subnet(name) for name in served])


def check_exact(fake: Any, prompt: list[int], tokens: list[int], subnets: list[Any]) -> None:
    """Each token is what its sub-network would have said if it had computed everything before."""
    history = list(prompt)
    for token, subnet in zip(tokens, subnets, strict=True):
        assert token == fake.next_token(history, [subnet] * len(history), subnet)
        history.append(token)


def stepwise(world: Any, points: list[str], fake: Any) -> None:
    """One step at each of ``points`` for everyone."""
    for name in points:
        world.engine._policy.choose = lambda _, name=name: fake.points[name]
        assert world.step()


@pytest.fixture
def drifting_world(make_world, fake):
    return lambda **options: make_world(policy=Drifting(lambda _: fake.points["depth:0"]), **options)


def test_going_up_backfills_what_left_early_and_the_planner_sees_it(drifting_world, fake) -> None:
    world = drifting_world()
    request_id = world.submit([1, 2, 3, 4, 5], 9, points=DEPTH, switching=True)
    (request,) = [generation.request for generation in world.engine._inbox._arrived]
    p0, p1 = fake.points["depth:0"], fake.points["depth:1"]
    expected = [{p0: 5}, {p0: 6}, {p1: 7}, {p0: 1, p1: 7}, {p1: 7, p0: 2}, {}, {p1: 1}, {}]
    for name, left in zip(["depth:0", "depth:0", "depth:1", "depth:0", "depth:0", "depth:2", "depth:1", "depth:2"],
                          expected, strict=True):  # fmt: skip
        stepwise(world, [name], fake)
        assert (request.exit_tokens, request.point) == (left, fake.points[name])
    stepwise(world, ["depth:2"], fake)
    report = world.end(request_id).report
    assert report.tokens_per_level == {"depth:0": 4, "depth:1": 2, "depth:2": 3}
    assert report.quality == pytest.approx((4 / 3 + 2 * 2 / 3 + 3) / 9)
    assert (report.operating_point, report.degraded) == ("depth:2", True)


def test_states_are_kept_only_where_somebody_may_go_deeper(drifting_world, fake) -> None:
    world = drifting_world()
    world.submit([1, 2, 3], 3, points=DEPTH[:2], switching=True)
    world.submit([1, 2, 3], 3, points=("depth:0",), switching=True)
    world.submit([1, 2, 3], 3, points=DEPTH, switching=False)
    stepwise(world, ["depth:1", "depth:0"], fake)
    kept = [[len(s.exits.kept) for s in steps] for _, steps in world.runner.calls]
    assert kept == [[0, 0, 0], [1, 0, 0]]


def test_without_pages_for_the_layers_above_it_stays_where_it_is(drifting_world, fake) -> None:
    world = drifting_world(num_pages=14, page_tokens=4)
    first = world.submit([1, 2, 3, 4, 5], 6, points=DEPTH, switching=True)
    stepwise(world, ["depth:0"], fake)
    other = world.submit(list(range(20, 29)), 3, points=("depth:1",))
    stepwise(world, ["depth:0"], fake)
    # 2 + 6 of 14 pages are held. Two layers more for two blocks and the next, and everyone's next block, take 9.
    stepwise(world, ["depth:2"], fake)
    assert [s.point.name for s in world.runner.calls[-1][1]] == ["depth:0", "depth:1"]
    stepwise(world, ["depth:1"], fake)
    assert [s.point.name for s in world.runner.calls[-1][1]] == ["depth:1", "depth:1"]
    stepwise(world, ["depth:2"], fake)
    assert [s.point.name for s in world.runner.calls[-1][1]] == ["depth:2"]
    world.run()
    assert [world.end(r).report.preemptions for r in (first, other)] == [0, 0]


def test_who_may_not_switch_stays_whatever_the_policy_says(make_world, fake) -> None:
    class Wanton(MaxQuality):
        def plan(self, *state: Any) -> StepPlan:
            plan = super().plan(*state)
            moved = [Slice(s.request, s.num_tokens, fake.points["depth:0"]) for s in plan.slices]
            return replace(plan, slices=moved if moved[0].request.has_started else plan.slices)

    world = make_world(policy=Wanton(Limits()))
    request = world.submit([1, 2, 3], 4, points=DEPTH)
    world.run()
    assert world.end(request).report.tokens_per_level == {"depth:2": 4}


def test_being_put_back_drops_the_states_and_changes_no_token(drifting_world, fake) -> None:
    world = drifting_world(num_pages=24, page_tokens=4)
    relaxed = world.submit([1, 2, 3], 18, points=DEPTH, switching=True, deadline_s=9.0)
    urgent = world.submit([4, 5, 6], 18, points=DEPTH, switching=True, deadline_s=5.0)
    draw = random.Random(2)
    while not (put_back := [r for r in world.engine.waiting if r.preemptions]):
        stepwise(world, [draw.choice(DEPTH[1:])], fake)
    (victim,) = put_back
    assert (victim.request_id, victim.exit_tokens) == (relaxed, {})
    while world.engine.has_work:
        stepwise(world, [draw.choice(DEPTH)], fake)
    for request, prompt in ((relaxed, [1, 2, 3]), (urgent, [4, 5, 6])):
        steps = [s for _, call in world.runner.calls for s in call if s.request_id == request and s.sampling]
        check_exact(fake, prompt, world.tokens(request), [step.subnet for step in steps])


@pytest.mark.parametrize(
    ("provider", "reader", "start", "reused"),
    [
        ("depth:2", DEPTH, "depth:0", 8),  # the pages found cover the layers above
        ("depth:0", DEPTH, "depth:0", 0),  # they do not, and without exit states it could never go deeper
        ("depth:1", DEPTH, "depth:2", 0),
        ("depth:2", DEPTH, "depth:2", 8),
        ("depth:1", DEPTH[:2], "depth:0", 8),
        ("depth:0", ("depth:0",), "depth:0", 8),
        ("mixed:1", MIXED, "mixed:0", 8),  # narrow keys for all layers: what a narrow token would have left
        ("mixed:3", MIXED, "mixed:0", 0),
        ("mixed:0", MIXED, "mixed:0", 0),
    ],
)
def test_a_prefix_is_reused_only_if_it_leaves_all_points_open(
    make_world, fake, provider: str, reader: tuple[str, ...], start: str, reused: int
) -> None:
    world, prompt = make_world(policy=Drifting(lambda _: fake.points[start])), list(range(10))
    world.submit(prompt, 1, points=(provider,))
    world.run()
    request = world.submit([*prompt, 77], 6, points=reader, switching=True)
    draw = random.Random(1)
    stepwise(world, [start], fake)
    while world.engine.has_work:
        stepwise(world, [draw.choice(reader)], fake)
    assert world.end(request).report.cached_tokens == reused
    if reader[0].startswith("depth"):
        subnets = [step.subnet for _, (step,) in world.runner.calls[1:]]
        check_exact(fake, [*prompt, 77], world.tokens(request), subnets)


@dataclass
class Served:
    """What a real decoder said to one prompt, and the sub-network that each token was served at."""

    prompt: list[int]
    events: list[Any] = field(default_factory=list)
    subnets: dict[int, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events if isinstance(event, TokenEvent) for token in event.token_ids]


def serve(path: Any, seed: int, names: tuple[str, ...], **options: Any) -> tuple[Decoder, list[Served]]:
    """Five prompts at once, each token at a level drawn from ``names``."""
    hosted = open_in_thread(ModelConfig(source=str(path), page_tokens=4, max_step_tokens=16, **options), None)
    engine, draw = hosted.host.engine, random.Random(seed)
    run = engine._runner.run
    engine._policy = Drifting(lambda request: draw.choice(request.points), engine._limits)
    engine._runner.run = lambda steps: (note(steps), run(steps))[1]
    points = tuple(hosted.points[name] for name in names)
    assert may_switch(hosted.ladders, points)
    served = {f"r{n}": Served([*range(20, 20 + 5 * n), n]) for n in range(5)}

    def note(steps: Any) -> None:
        for step in steps:
            served[step.request_id].subnets[step.sample_index] = step.subnet

    for request_id, each in served.items():
        prompt = tuple(each.prompt)
        request = Request(request_id, engine.now(), SLO(), points, len(prompt), max_tokens=20, may_switch=True)
        engine.submit(GenerationJob(request, prompt, SamplingParams(), ignore_eos=True), each.events.append)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    return engine._runner.decoder, list(served.values())


@pytest.mark.parametrize(("seed", "kv_cache_tokens"), [(1, 4096), (2, 4096), (3, 80)])
def test_a_real_decoder_says_what_each_level_alone_would_say(tiny, seed: int, kv_cache_tokens: int) -> None:
    decoder, served = serve(tiny, seed, DEPTH, kv_cache_tokens=kv_cache_tokens)
    assert any(each.events[-1].report.preemptions for each in served) == (kv_cache_tokens == 80)
    for each in served:
        assert len(each.events[-1].report.tokens_per_level) == 3
        history = list(each.prompt)
        for index, token in enumerate(each.tokens):
            with torch.no_grad():
                hidden = decoder.forward_dense(torch.tensor([history]), each.subnets[index])[-1]
            logits = decoder.logits(hidden)[0, -1]
            assert logits.max() - logits[token] < 1e-4, "not the token of this level"
            history.append(token)


def test_a_real_decoder_is_deterministic_where_switching_is_approximate(tiny) -> None:
    (_, first), (_, second) = (serve(tiny, 4, ("width:0", "width:1"), kv_cache_tokens=4096) for _ in range(2))
    assert [each.tokens for each in first] == [each.tokens for each in second]
    assert all(len(each.events[-1].report.tokens_per_level) == 2 for each in first)
