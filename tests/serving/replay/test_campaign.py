"""The simulation campaign: the real engine and every policy in virtual time, under everything that can go wrong.

A seed makes a scenario: arrivals, cancels, clients that go away, clock jumps, wrong predictions, failing steps, too few
pages. Invariants are checked in every step and at the end. ``STEPWELL_CAMPAIGN=5000 python -m pytest
tests/serving/replay/test_campaign.py`` tries so many seeds a policy; a failing one says how to replay it.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from stepwell.models.cache import PagedKVCache
from stepwell.models.ladder import Architecture, parse_ladders
from stepwell.models.sampling import SampledToken, SamplingParams
from stepwell.schedulers.correction import OnlineCorrection
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Limits, Slice
from stepwell.schedulers.registry import POLICIES, create_policy
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.events import FinishEvent, Outcome, TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.points import UnitParameters, allowed_points, may_switch, operating_points
from stepwell.serving.engine.step import SequenceStep, StepError
from stepwell.serving.errors import RequestError, Status
from stepwell.serving.replay.virtual import Fault, SimRunner, VirtualClock

NUM_SEEDS = int(os.environ.get("STEPWELL_CAMPAIGN", "40"))
ONE_SEED = os.environ.get("STEPWELL_CAMPAIGN_SEED")
PAGE_TOKENS, HOLE = 4, -1
"""Of a page; what a layer that a token did not run has in its place."""
PATIENCE_S, PATIENCE_STEPS = 120.0, 25
"""More than ageing lets any class wait while there is room for it; steps, too, as a single one may take minutes."""
SMALL_BATCHES = ("clockwork", "slack_fit")
"""Policies that leave room in a step on purpose: there, steps of nothing but more urgent requests do not count."""
LEVELS = [{"layers": 1, "ffn": 2, "quality": 0.3}, {"layers": 2, "ffn": 2, "quality": 0.5}, {"ffn": 2, "quality": 0.7},
          {"ffn": 5, "quality": 0.9}, {}]  # fmt: skip
LADDERS = parse_ladders(
    {
        "format": 1,
        "default": "mixed",
        "ladders": {
            "mixed": {"kv": "approximate", "levels": LEVELS},
            "depth": {"kv": "exact", "levels": [{"layers": n, "quality": n / 3} for n in (1, 2, 3)]},
            "dropped": {"levels": [{"drop_attention": [1], "quality": 0.6}, {}]},
        },
    },
    Architecture(num_layers=3, num_kv_groups=2, ffn_channels=8),
)
POINTS = operating_points(LADDERS, UnitParameters(attention_group=4, ffn_channel=3, head=10))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The engine's log of injected faults is long, and not of interest."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Client:
    """One request as its sender sees it."""

    def __init__(self, world: World, request: Request, gone_after: int) -> None:
        self.world, self.request, self.gone_after = world, request, gone_after
        self.token_times: list[float] = []
        self.ends: list[FinishEvent] = []
        self.end_s = math.nan
        self.may_cancel = False
        """Somebody cancelled it, or its client went away."""
        self.passed_over: list[float] = []
        """Durations of the steps that had room for it and left it waiting."""
        self.point: OperatingPoint | None = None
        """Where it ran last."""

    def sink(self, event: TokenEvent | FinishEvent) -> None:
        self.world.require(not self.ends, self, f"got {event} after its end")
        if isinstance(event, FinishEvent):
            self.ended(event)
            return
        self.token_times += [self.world.clock()] * len(event.token_ids)
        if len(self.token_times) >= self.gone_after:
            self.may_cancel = True
            raise ConnectionError("injected: client gone")

    def ended(self, event: FinishEvent) -> None:
        self.ends.append(event)
        self.end_s = self.world.clock()

    @property
    def in_time(self) -> bool:
        """All of its tokens came when they were due."""
        request, slo = self.request, self.request.slo
        if self.end_s > request.deadline_s or self.token_times[0] > request.arrival_s + slo.ttft_s:
            return False
        if slo.tpot_s == math.inf:
            return True
        first_s = self.token_times[0] if slo.ttft_s == math.inf else request.arrival_s + slo.ttft_s
        return all(at_s <= first_s + k * slo.tpot_s for k, at_s in enumerate(self.token_times))


class World:
    """One scenario. ``scale``: seconds of a typical step; all times are multiples of it."""

    def __init__(self, seed: int, policy: str) -> None:
        self.rng = rng = random.Random(seed)
        self.scale = rng.choice((0.002, 0.05, 1.0))
        self.clock = VirtualClock()
        self.clients: dict[str, Client] = {}
        self.violations: list[str] = []
        self.blamed: set[str] = set()
        self.poison: set[str] = set()
        self.abandoned = False
        self.log: list[tuple[float, str, str]] = []
        self.limits = Limits(rng.choice((8, 24, 64)), rng.choice((2, 4, 12)), rng.choice((4, 100)))
        # The storage of keys holds a checksum of each token's history.
        self.cache = PagedKVCache(3, 1, 1, rng.choice((50, 80, 400)), PAGE_TOKENS, torch.float64)
        assert self.cache.keys is not None
        self.store = self.cache.keys.numpy().reshape(-1)
        self.fault_rate = rng.choice((0.0, 0.0, 0.02, 0.2))
        self.policy = policy
        self.step_began_s, self.num_tokens, self.least_urgent_s = -1.0, 0, -math.inf
        """When the engine's present step began (what fails is run again, later), how much is in it, and who."""
        believed = StepCostModel.linear(list(POINTS.values()), self.scale / 20, self.scale / 2)
        bias, late_bias = rng.choice((1.0, 1.0, 0.3, 3.0)), rng.choice((1.0, 1.0, 2.0))
        turning_s = self.scale * rng.uniform(0, 100)

        def seconds(slices: Sequence[Slice]) -> float:
            return believed.raw_s(slices) * bias * (late_bias if self.clock() > turning_s else 1.0)

        self.requests: dict[str, Request] = {}
        self.prompts: dict[str, Sequence[int]] = {}
        noise = rng.choice((0.0, 0.05, 0.5))
        self.sim = SimRunner(
            self.requests, seconds, clock=self.clock, sleep_until=self.clock.advance_to,
            noise=noise, seed=seed, faults=self.fault)  # fmt: skip
        costs = StepCostModel(believed.overhead_s, believed.output_s, believed.ladders, OnlineCorrection())
        self.engine = Engine(
            runner=self,
            cache=self.cache,
            policy=create_policy(policy, self.limits),
            tokenizer=None,
            ladders=LADDERS,
            limits=self.limits,
            eos_token_ids=(),
            clock=self.clock,
            cost_model=costs,
            observer=self,
        )
        self.schedule()

    # What happens.

    def schedule(self) -> None:
        rng, at_s = self.rng, 0.0
        gap_s = self.scale * rng.choice((0.2, 1.0, 5.0))
        for number in range(rng.randint(5, 40)):
            at_s += 0.0 if rng.random() < 0.3 else rng.expovariate(1 / gap_s)
            self.clock.at(at_s, lambda number=number: self.submit(f"r{number}"))  # type: ignore[misc]
            if rng.random() < 0.15:
                cancel_s = at_s + self.scale * rng.uniform(-1, 40)
                self.clock.at(cancel_s, lambda number=number: self.cancel(f"r{number}"))  # type: ignore[misc]
        if rng.random() < 0.1:
            self.clock.at(at_s * rng.random(), self.engine.drain)
            self.clock.at(at_s + self.scale * rng.uniform(0, 10), lambda: setattr(self, "abandoned", True))

    def submit(self, request_id: str) -> None:
        rng, now = self.rng, self.clock()
        pinned = rng.choice(list(POINTS)) if rng.random() < 0.2 else None
        min_quality = rng.choice((0.4, 0.6, 0.8)) if rng.random() < 0.2 and pinned is None else 0.0
        points = allowed_points(POINTS, LADDERS, min_quality, pinned)
        prompt = [rng.randrange(3)] * rng.randint(1, 30) + [rng.randrange(50) for _ in range(rng.randint(0, 6))]
        request = Request(
            request_id=request_id,
            arrival_s=now,
            slo=SLO(
                slo_class=rng.choice("abc"),
                deadline_s=self.sometimes(0.3, 2, 80),
                ttft_s=self.sometimes(0.4, 1, 30),
                tpot_s=self.sometimes(0.4, 0.5, 6),
                min_quality=min_quality,
                priority=rng.choice((0, 1, 2, 3)),
            ),
            points=points,
            prompt_tokens=len(prompt),
            max_tokens=rng.choice((1, 1, rng.randint(1, 24))),
            hard_deadline_s=now + self.sometimes(0.15, 1, 100),
            queue_deadline_s=now + self.sometimes(0.15, 1, 40),
            may_switch=may_switch(LADDERS, points),
        )
        gone_after = rng.randint(1, 8) if rng.random() < 0.05 else 10**9
        client = self.clients[request_id] = Client(self, request, gone_after)
        self.requests[request_id], self.prompts[request_id] = request, prompt
        if self.fault_rate and rng.random() < 0.08:
            self.poison.add(request_id)
        try:
            self.engine.submit(GenerationJob(request, tuple(prompt), SamplingParams(), (), True), client.sink)
        except RequestError as error:
            if error.code in (Status.UNAVAILABLE, Status.INVALID_ARGUMENT):  # drained, or larger than the cache
                del self.clients[request_id]
            else:
                self.require(len(client.ends) == 1, client, f"refused, and the observer told {len(client.ends)} times")

    def sometimes(self, probability: float, low: float, high: float) -> float:
        """A time in steps, or never."""
        return self.scale * self.rng.uniform(low, high) if self.rng.random() < probability else math.inf

    def cancel(self, request_id: str) -> None:
        if request_id in self.clients:
            self.clients[request_id].may_cancel = True
        self.engine.cancel(request_id)

    def fault(self, number: int, steps: Sequence[SequenceStep]) -> Fault:
        rng, ids = self.rng, [step.request_id for step in steps]
        poisoned = self.poison.intersection(ids)
        if poisoned and rng.random() < 0.7:
            named = rng.random() < 0.5
            self.blamed |= poisoned if named or len(ids) == 1 else set()
            return Fault(error=StepError("injected", poisoned) if named else RuntimeError("injected"))
        if rng.random() >= self.fault_rate:
            return Fault()
        kind = rng.choice(("slow", "plain", "named", "nobody"))
        if kind == "slow":
            return Fault(slowdown=rng.uniform(1, 50))
        culprits = set(rng.sample(ids, rng.randint(1, len(ids)))) if kind == "named" else set()
        self.blamed |= set(ids) if len(ids) == 1 else culprits
        return Fault(error=RuntimeError("injected") if kind == "plain" else StepError("injected", culprits))

    # The engine's runner and observer.

    def run(self, steps: Sequence[SequenceStep]) -> dict[str, SampledToken]:
        written: set[int] = set()
        self.num_tokens = max(self.num_tokens, sum(len(step.token_ids) for step in steps))
        for step in steps:
            client = self.clients[step.request_id]
            self.least_urgent_s = max(self.least_urgent_s, client.request.urgency_s)
            self.check_point(client, step)
            self.check_in_time(client)
            pages = set(step.pages.table[:, step.start // PAGE_TOKENS :].ravel().tolist())
            self.require(written.isdisjoint(pages), client, "writes to another's page")
            written |= pages
            self.check_contents(client, step)
        return self.sim.run(steps)

    def check_point(self, client: Client, step: SequenceStep) -> None:
        request = client.request
        self.require(step.point in request.points, client, f"runs at {step.point.name}, which it does not allow")
        stays = request.may_switch or client.point in (None, step.point)
        self.require(stays, client, f"switched to {step.point.name}")
        client.point = step.point

    def check_in_time(self, client: Client) -> None:
        request, now = client.request, self.step_began_s
        self.require(now < request.hard_deadline_s, client, "runs although nobody waits for it any more")
        if request.started_s == now:
            due_s = min(request.deadline_s, request.queue_deadline_s)
            self.require(now < due_s, client, f"started at {now}, due by {due_s}")

    def check_contents(self, client: Client, step: SequenceStep) -> None:
        """Every key that the step reads is that of its own history. Writes what the step would."""
        tokens = np.array([*self.prompts[step.request_id], *[0] * client.request.generated_tokens], np.int64)
        end = step.start + len(step.token_ids)
        self.require(tokens[step.start : end].tolist() == list(step.token_ids), client, "other tokens")
        sums = np.cumsum((tokens[:end] + 1) * (np.arange(end) * 31 + 7))
        slots_of = dict(zip(step.pages.subnet.kv_layers, step.pages.all_slots(0, end), strict=True))
        for layer, slots in slots_of.items():
            ran = layer in step.subnet.kv_layers
            for segment in step.exits.backfill:
                if ran and layer >= segment.depth:
                    self.store[slots[segment.start : segment.end]] = sums[segment.start : segment.end]
            self.store[slots[step.start :]] = sums[step.start :] if ran else HOLE
            if ran:
                wrong = np.flatnonzero(self.store[slots] != sums)
                self.require(not len(wrong), client, f"layer {layer}: wrong keys of tokens {wrong}")

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        client = self.clients[request.request_id]
        if client.gone_after <= len(client.token_times):
            client.ended(event)  # its sink is told nothing any more
        self.log.append((self.clock(), request.request_id, event.outcome.value))

    def request_refused(self, event: FinishEvent, request: Request) -> None:
        self.clients[request.request_id].ended(event)
        self.log.append((self.clock(), request.request_id, event.outcome.value))

    def step_finished(self, step: Any) -> None: ...

    # The campaign.

    def require(self, condition: bool, client: Client, problem: str) -> None:
        if not condition:
            self.violations.append(f"{client.request.request_id} at {self.clock():.6g} s: {problem}")

    def play(self) -> None:
        for _ in range(20_000):
            progressed = self.step()
            if self.abandoned:
                self.engine.abandon()
                break
            if self.rng.random() < 0.02:
                self.clock.advance_to(self.clock() + self.scale * self.rng.uniform(1, 300))
            elif not progressed:
                until_s = min(self.clock.next_s, self.engine.next_expiry_s)
                if until_s == math.inf:
                    break
                self.clock.advance_to(until_s)
        self.check_end()

    def step(self) -> bool:
        before = self.engine.waiting
        self.step_began_s = began_s = self.clock()
        self.num_tokens, self.least_urgent_s = 0, -math.inf
        progressed = self.engine.step()
        self.engine.check_integrity()
        self.note_passed_over(before, began_s)
        assert not self.violations, self.violations
        return progressed

    def note_passed_over(self, waited: Sequence[Request], began_s: float) -> None:
        """Waiting although there is a seat, and room for it, for those before it (as nobody overtakes whoever waits for
        pages) and for all that run to grow, must end."""
        pages, still = self.cache.free_pages - 3 * (self.engine.num_running + 1), set(self.engine.waiting)
        for request in sorted((r for r in waited if r in still), key=lambda r: r.urgency_s):
            needed = 3 * -(-request.known_tokens // PAGE_TOKENS)
            if needed > pages or self.engine.num_running >= self.limits.max_running:
                break
            on_purpose = self.policy in SMALL_BATCHES and self.least_urgent_s <= request.urgency_s
            if not on_purpose and self.num_tokens < self.limits.max_step_tokens:
                passed = (client := self.clients[request.request_id]).passed_over
                passed.append(self.clock() - began_s)
                starves = sum(passed) > PATIENCE_S and len(passed) > PATIENCE_STEPS
                self.require(not starves, client, f"starves: passed over by {len(passed)} steps")

    def check_end(self) -> None:
        left = [request.request_id for request in (*self.engine.waiting, *self.engine.running)]
        assert not self.engine.has_work, f"wait for ever: {left}"
        assert self.cache.free_pages == self.cache.total_pages
        for client in self.clients.values():
            self.require(len(client.ends) == 1, client, f"ended {len(client.ends)} times")
            if client.ends:
                self.check_outcome(client, client.ends[0])
        assert not self.violations, self.violations
        assert Counter(name for _, name, _ in self.log) == Counter(list(self.clients))

    def check_outcome(self, client: Client, end: FinishEvent) -> None:
        request, report = client.request, end.report
        outcome, done = end.outcome, len(client.token_times) == request.max_tokens
        lawful = {
            Outcome.MET: done and client.in_time,
            Outcome.MISSED: done and not client.in_time,
            Outcome.CANCELLED: client.may_cancel,
            Outcome.FAILED: request.request_id in self.blamed,
            Outcome.SHED: end.drop_reason in ("queue_full", "hopeless"),
            Outcome.EXPIRED: client.end_s >= min(request.deadline_s, request.queue_deadline_s)
            or (self.abandoned and end.drop_reason == "shutdown"),
        }
        self.require(lawful[outcome], client, f"{outcome} is not what happened")
        self.require(report.generated_tokens == len(client.token_times), client, "miscounted tokens")
        self.require(sum(report.tokens_per_level.values()) == len(client.token_times), client, "miscounted levels")
        self.require(math.isclose(report.total_ms, (client.end_s - request.arrival_s) * 1e3), client, "wrong total")
        floor = min(report.quality, 1.0) if client.token_times else 1.0
        self.require(floor >= request.slo.min_quality - 1e-9, client, f"served below its floor: {report.quality}")


def play(seed: int, policy: str) -> World:
    """Raises AssertionError saying how to replay the seed."""
    world = World(seed, policy)
    try:
        world.play()
    except Exception as error:
        raise AssertionError(
            f"policy {policy}, seed {seed}: {error!r}\nreplay: STEPWELL_CAMPAIGN_SEED={seed} python -m pytest "
            f"'tests/serving/replay/test_campaign.py::test_invariants_hold_whatever_happens[{policy}]'"
        ) from error
    return world


@pytest.mark.parametrize("policy", [*POLICIES, "fixed:min"])
def test_invariants_hold_whatever_happens(policy):
    outcomes: Counter[str] = Counter()
    for seed in range(NUM_SEEDS) if ONE_SEED is None else [int(ONE_SEED)]:
        outcomes.update(outcome for _, _, outcome in play(seed, policy).log)
    if ONE_SEED is None:
        print(f"{policy}: {NUM_SEEDS} seeds, {dict(outcomes)}")
        assert set(outcomes) == {outcome.value for outcome in Outcome}, "a campaign that does not meet every outcome"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_replays(policy):
    assert all(play(seed, policy).log == play(seed, policy).log for seed in (3, 4))
