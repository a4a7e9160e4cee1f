"""A world for the engine: virtual time, a real cache, and a fake model whose numbers can be done by hand.

The fake model knows only what a real one would: the new tokens of each sequence, and what it finds in the cache. In
every layer it writes, at (page, slot) of each new token, a checksum of the whole history up to that token, marked with
the units that a real model's keys and values there depend on. A token is a function of everything it reads back. So a
stale page, a wrong position, a wrong page table, or pages of a sub-network that must not be shared all give another
token than ``reference``, which needs no cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stepwell.models.cache import PagedKVCache
from stepwell.models.ladder import Architecture, LadderSet, SubNetwork, parse_ladders
from stepwell.models.sampling import SampledToken, SamplingParams
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import SLO, Request
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.events import FinishEvent, TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.points import UnitParameters, operating_points
from stepwell.serving.engine.step import SequenceStep

VOCAB = 10_007
ARCHITECTURE = Architecture(num_layers=3, num_kv_groups=2, ffn_channels=8)
LADDERS = parse_ladders(
    {
        "format": 1,
        "default": "depth",
        "ladders": {
            "depth": {"kv": "exact", "levels": [{"layers": n, "quality": n / 3} for n in (1, 2, 3)]},
            "width": {"kv": "approximate", "levels": [{"ffn": n, "quality": n / 8} for n in (2, 8)]},
            "dropped": {"levels": [{"drop_attention": [0, 1, 2], "quality": 0.1}, {"drop_attention": [1]}]},
        },
    },
    ARCHITECTURE,
)
POINTS = operating_points(LADDERS, UnitParameters(attention_group=4, ffn_channel=3, head=10))


def checksums(before: int, token_ids: Sequence[int], start: int) -> np.ndarray:
    """Of the histories that end with each of ``token_ids``, given the one before: position-weighted sums mod 2^31."""
    positions = np.arange(start, start + len(token_ids), dtype=np.int64)
    return (before + np.cumsum((np.array(token_ids, np.int64) + 1) * (positions * 31 + 7))) % 2**31


def mark(subnet: SubNetwork, layer: int) -> int:
    """Differs where the keys and values of ``layer`` would: by the units of the layers before."""
    units = subnet.kv_groups[:layer] + subnet.ffn_channels[:layer]
    return sum((i + 1) * (unit + 1) for i, unit in enumerate(units)) % 1000


def token_of(history_KT: np.ndarray, subnet: SubNetwork, last_token: int) -> int:
    """The next token, from all that attention reads ([layers with attention, tokens]) and the last token."""
    weights = np.arange(1, history_KT.shape[1] + 1) % 97
    read = int((history_KT % 65_521 * weights).sum())
    return (read + 31 * last_token + sum(subnet.ffn_channels)) % VOCAB


def reference(prompt: Sequence[int], subnet: SubNetwork, num_tokens: int, eos: Collection[int] = ()) -> list[int]:
    """What the fake model generates: up to ``num_tokens``, ended by the first of ``eos``."""
    history, generated = list(prompt), []
    while len(generated) < num_tokens and not (generated and generated[-1] in eos):
        sums = checksums(0, history, 0)
        values_KT = np.array([sums * 1000 + mark(subnet, layer) for layer in subnet.kv_layers]).reshape(-1, len(sums))
        generated.append(token_of(values_KT, subnet, history[-1]))
        history.append(generated[-1])
    return generated


class FakeRunner:
    """See the module. ``faults``: which calls (from 0) raise, after having written half of their work."""

    def __init__(self, world: World, faults: Collection[int]) -> None:
        self.world, self.faults = world, faults
        self.calls: list[tuple[float, list[SequenceStep]]] = []
        """(clock time, steps) of each call."""
        self.violations: list[str] = []

    def run(self, steps: Sequence[SequenceStep]) -> dict[str, SampledToken]:
        number = len(self.calls)
        self.calls.append((self.world.now, list(steps)))
        self._check_writes(steps)
        tokens = {}
        for i, step in enumerate(steps):
            token_id = self._run_one(step)
            if number in self.faults and 2 * i + 1 >= len(steps):
                raise RuntimeError("injected fault: secret stack trace")
            if step.sampling is not None:
                tokens[step.request_id] = SampledToken(token_id, -1.0 if step.sampling.logprobs else None)
        self.world.now += 0.001 + 0.0001 * sum(len(step.token_ids) for step in steps)
        return tokens

    def _run_one(self, step: SequenceStep) -> int:
        end, subnet, table = step.start + len(step.token_ids), step.pages.subnet, step.pages.table
        slots_KT = (table * self.world.cache.page_tokens)[:, :, None] + np.arange(self.world.cache.page_tokens)
        slots_KT = slots_KT.reshape(len(table), table.shape[1] * self.world.cache.page_tokens)[:, :end]
        store = self.world.store
        before = int(store[slots_KT[0, step.start - 1]]) // 1000 if len(table) and step.start else 0
        sums = checksums(before, step.token_ids, step.start)
        for row, layer in enumerate(subnet.kv_layers):
            store[slots_KT[row, step.start :]] = sums * 1000 + mark(subnet, layer)
        return token_of(store[slots_KT].astype(np.int64), subnet, step.token_ids[-1])

    def _check_writes(self, steps: Sequence[SequenceStep]) -> None:
        page_tokens = self.world.cache.page_tokens
        written: set[int] = set()
        for step in steps:
            end = step.start + len(step.token_ids)
            self._require(bool(step.token_ids), step, "no tokens")
            self._require(step.pages.num_tokens == step.start, step, f"starts at {step.start}")
            blocks = step.pages.table[:, step.start // page_tokens : -(-end // page_tokens)]
            self._require(
                blocks.shape[1] == -(-end // page_tokens) - step.start // page_tokens or not len(blocks),
                step, f"no room for {end} tokens",
            )  # fmt: skip
            self._require(written.isdisjoint(blocks.ravel().tolist()), step, "shares a page that is written")
            written.update(blocks.ravel().tolist())
        self._require(len({s.request_id for s in steps}) == len(steps), steps[0], "twice in one step")

    def _require(self, condition: bool, step: SequenceStep, problem: str) -> None:
        if not condition:
            self.violations.append(f"{step.request_id} at {step.start}: {problem}")


class Recorder:
    """The observer that remembers."""

    def __init__(self) -> None:
        self.finished: list[tuple[FinishEvent, Request]] = []
        self.steps: list[Any] = []

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        self.finished.append((event, request))

    def step_finished(self, step: Any) -> None:
        self.steps.append(step)


class World:
    """One engine with everything around it."""

    def __init__(
        self,
        *,
        num_pages: int = 300,
        page_tokens: int = 4,
        faults: Collection[int] = (),
        eos: Collection[int] = (),
        tokenizer: Any = None,
        runner: Any = None,
        policy: Any = None,
        cost_model: Any = None,
        clock: Callable[[], float] | None = None,
        **limits: int,
    ) -> None:
        self.now = 0.0
        self.eos = eos
        # The dimensions of the storage are those of one checksum a token.
        self.cache = PagedKVCache(ARCHITECTURE.num_layers, 1, 1, num_pages, page_tokens, torch.float64)
        assert self.cache.keys is not None
        self.store = self.cache.keys.numpy().reshape(-1)
        self.runner = runner or FakeRunner(self, faults)
        self.observer = Recorder()
        self.events: dict[str, list[TokenEvent | FinishEvent]] = {}
        bounds = Limits(**limits)
        self.engine = Engine(
            runner=self.runner,
            cache=self.cache,
            policy=policy or create_policy("max_quality", bounds),
            tokenizer=tokenizer,
            ladders=LADDERS,
            limits=bounds,
            eos_token_ids=eos,
            clock=clock or (lambda: self.now),
            cost_model=cost_model,
            observer=self.observer,
        )
        self._ids = itertools.count()

    def submit(
        self,
        prompt: Sequence[int] = (1, 2, 3),
        max_tokens: int = 4,
        *,
        points: Sequence[str] = ("depth:0", "depth:1", "depth:2"),
        request_id: str | None = None,
        hard_s: float = math.inf,
        queue_s: float = math.inf,
        stop: tuple[str, ...] = (),
        ignore_eos: bool = False,
        sampling: SamplingParams | None = None,
        sink: Callable[[TokenEvent | FinishEvent], None] | None = None,
        **slo: Any,
    ) -> str:
        """Submit a request that arrives now; times are relative. Returns its id; its events are collected."""
        now = self.engine.now()
        request = Request(
            request_id=request_id or f"r{next(self._ids)}",
            arrival_s=now,
            slo=SLO(**slo),
            points=tuple(POINTS[name] for name in points),
            prompt_tokens=len(prompt),
            max_tokens=max_tokens,
            hard_deadline_s=now + hard_s,
            queue_deadline_s=now + queue_s,
        )
        job = GenerationJob(request, tuple(prompt), sampling or SamplingParams(), stop, ignore_eos)
        collected: list[TokenEvent | FinishEvent] = []
        self.engine.submit(job, sink or collected.append)
        self.events[request.request_id] = collected
        return request.request_id

    def step(self) -> bool:
        """One step, with everything checked after it."""
        before = {request: request.preemptions for request in self.engine.running}
        progressed = self.engine.step()
        self.engine.check_integrity()
        assert not self.violations
        running = self.engine.running
        assert all(r not in running for r, count in before.items() if r.preemptions > count), "put back for nothing"
        return progressed

    def run(self, max_steps: int = 2000) -> None:
        """Step until all is done; sleeping is jumping to the next deadline."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                return
            if not self.step() and self.engine.has_work:
                assert self.engine.next_expiry_s < math.inf, "the engine would sleep forever"
                self.now = max(self.now, self.engine.next_expiry_s)
        raise AssertionError(f"not done after {max_steps} steps: {self.engine.running} {self.engine.waiting}")

    @property
    def violations(self) -> list[str]:
        return getattr(self.runner, "violations", [])

    def tokens(self, request_id: str) -> list[int]:
        """Generated so far, as streamed."""
        return [t for event in self.events[request_id] if isinstance(event, TokenEvent) for t in event.token_ids]

    def text(self, request_id: str) -> str:
        """Streamed so far."""
        return "".join(event.text for event in self.events[request_id] if isinstance(event, TokenEvent))

    def end(self, request_id: str) -> FinishEvent:
        """How it ended: its last event, and its only one of that kind."""
        *before, last = self.events[request_id]
        assert isinstance(last, FinishEvent)
        assert all(isinstance(event, TokenEvent) for event in before)
        return last

    def close(self) -> None:
        """What holds for every world when it is left alone."""
        self.engine.check_integrity()
        assert not self.violations
        if not self.engine.has_work:
            assert self.cache.free_pages == self.cache.total_pages
            assert self.engine.num_running == self.engine.num_waiting == 0


@pytest.fixture
def make_world():
    """``make_world(num_pages=.., page_tokens=.., **limits)``; each is checked when the test ends."""
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(**options))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """``fake.World``, ``fake.reference(prompt, point_name, n, eos)``, ``fake.ladders``, ``fake.points``."""
    ladders: LadderSet = LADDERS

    def expected(prompt: Sequence[int], point: str, num_tokens: int, eos: Collection[int] = ()) -> list[int]:
        return reference(prompt, ladders.subnet(point), num_tokens, eos)

    return SimpleNamespace(World=World, reference=expected, ladders=ladders, points=POINTS, vocab=VOCAB)
