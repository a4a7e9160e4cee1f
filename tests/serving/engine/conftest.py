"""A world for the engine: virtual time, a real cache, and a fake model whose numbers can be done by hand.

The fake model knows only what a real one would: the new tokens of each sequence, and what it finds in the cache. In
every layer it writes, at (page, slot) of each new token, a checksum of the whole history up to that token, marked with
the units that a real model's keys and values there depend on. A token is a function of everything it reads back. So a
stale page, a wrong position, a wrong page table, or pages of a sub-network that must not be shared all give another
token than ``reference``, which needs no cache.

Where a level may change, an exit hidden state of the fake model is the checksum and the units that the token has run.
Tokens that did not run a layer leave a hole in its pages: reading one gives another token, too.
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
from stepwell.models.exits import ExitSegment
from stepwell.models.ladder import Architecture, LadderSet, SubNetwork, parse_ladders
from stepwell.models.sampling import SampledToken, SamplingParams
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import SLO, Request
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.events import FinishEvent, TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.points import UnitParameters, may_switch, operating_points
from stepwell.serving.engine.step import SequenceStep

VOCAB = 10_007
HOLE = -977_000
"""What is found where a layer was not run."""
ARCHITECTURE = Architecture(num_layers=3, num_kv_groups=2, ffn_channels=8)
LADDERS = parse_ladders(
    {
        "format": 1,
        "default": "depth",
        "ladders": {
            "depth": {"kv": "exact", "levels": [{"layers": n, "quality": n / 3} for n in (1, 2, 3)]},
            "width": {"kv": "approximate", "levels": [{"ffn": n, "quality": n / 8} for n in (2, 8)]},
            "mixed": {
                "kv": "approximate",
                "levels": [{"layers": 1, "ffn": 2, "quality": 0.2}, {"ffn": 2, "quality": 0.6}, {"ffn": 5}, {}],
            },
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


def risen(below: SubNetwork, above: SubNetwork, depth: int) -> SubNetwork:
    """The units of a token that left ``below`` after ``depth`` layers and later ran those of ``above`` from there."""
    groups = below.kv_groups[:depth] + above.kv_groups[depth:]
    return SubNetwork(groups, below.ffn_channels[:depth] + above.ffn_channels[depth:])


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
        generated.append(next_token(history, [subnet] * len(history), subnet))
        history.append(generated[-1])
    return generated


def next_token(history: Sequence[int], units: Sequence[SubNetwork], subnet: SubNetwork) -> int:
    """What ``subnet`` says after ``history``, of which token i has run ``units[i]``."""
    sums = checksums(0, history, 0)
    marks = np.array([[mark(ran, layer) for ran in units] for layer in subnet.kv_layers]).reshape(-1, len(sums))
    return token_of(sums * 1000 + marks, subnet, history[-1])


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
        end, subnet, store = step.start + len(step.token_ids), step.subnet, self.world.store
        slots_of = dict(zip(step.pages.subnet.kv_layers, step.pages.all_slots(0, end), strict=True))
        states = [self._backfill(step, segment, slots_of) for segment in step.exits.backfill]
        read = [slots_of[layer] for layer in subnet.kv_layers]
        before = int(store[read[0][step.start - 1]]) // 1000 if read and step.start else 0
        sums = checksums(before, step.token_ids, step.start)
        for layer, slots in slots_of.items():
            ran = layer in subnet.kv_layers
            store[slots[step.start :]] = sums * 1000 + mark(subnet, layer) if ran else HOLE
        states.append([(int(checksum), subnet) for checksum in sums])
        for segment, hidden in zip(step.exits.kept, states, strict=False):
            segment.hidden = [hidden]
        history_KT = store[np.array(read, np.int64).reshape(-1, end)].astype(np.int64)
        return token_of(history_KT, subnet, step.token_ids[-1])

    def _backfill(
        self, step: SequenceStep, segment: ExitSegment, slots_of: dict[int, np.ndarray]
    ) -> list[tuple[int, SubNetwork]]:
        """Run the layers above over exit states; returns the new ones."""
        states = [state for piece in segment.hidden for state in piece]
        self._require(len(states) == segment.num_tokens, step, f"{len(states)} exit states")
        self._require(segment.end <= step.start, step, "exit states of tokens that are not computed")
        after = [(checksum, risen(units, step.subnet, segment.depth)) for checksum, units in states]
        for layer in step.subnet.kv_layers:
            if layer >= segment.depth:
                slots = slots_of[layer][segment.start : segment.end]
                self.world.store[slots] = [checksum * 1000 + mark(units, layer) for checksum, units in after]
        return after

    def _backfilled_pages(self, step: SequenceStep) -> set[int]:
        page_tokens, table = self.world.cache.page_tokens, step.pages.table
        return {
            int(page)
            for segment in step.exits.backfill
            for layer in step.subnet.kv_layers
            if layer >= segment.depth
            for page in table[step.pages.row_of(layer), segment.start // page_tokens : -(-segment.end // page_tokens)]
        }

    def _check_writes(self, steps: Sequence[SequenceStep]) -> None:
        page_tokens, ledger = self.world.cache.page_tokens, self.world.cache._ledger
        written: set[int] = set()
        for step in steps:
            end = step.start + len(step.token_ids)
            self._require(step.subnet is LADDERS.subnet(step.point.name), step, "another point's sub-network")
            self._require(set(step.subnet.kv_layers) <= set(step.pages.subnet.kv_layers), step, "layers without pages")
            self._require(bool(step.token_ids), step, "no tokens")
            self._require(step.pages.num_tokens == step.start, step, f"starts at {step.start}")
            blocks = step.pages.table[:, step.start // page_tokens : -(-end // page_tokens)]
            self._require(
                blocks.shape[1] == -(-end // page_tokens) - step.start // page_tokens or not len(blocks),
                step, f"no room for {end} tokens",
            )  # fmt: skip
            pages = {*blocks.ravel().tolist(), *self._backfilled_pages(step)}
            shared = [page for page in pages if ledger.pool.refs[page] != 1 or page in ledger.index]
            self._require(not shared and written.isdisjoint(pages), step, "shares a page that is written")
            written |= pages
        self._require(len({s.request_id for s in steps}) == len(steps), steps[0], "twice in one step")

    def _require(self, condition: bool, step: SequenceStep, problem: str) -> None:
        if not condition:
            self.violations.append(f"{step.request_id} at {step.start}: {problem}")


class Recorder:
    """The observer that remembers."""

    def __init__(self) -> None:
        self.finished: list[tuple[FinishEvent, Request]] = []
        self.refused: list[tuple[FinishEvent, Request]] = []
        self.steps: list[Any] = []

    def request_finished(self, event: FinishEvent, request: Request) -> None:
        self.finished.append((event, request))

    def request_refused(self, event: FinishEvent, request: Request) -> None:
        self.refused.append((event, request))

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
        switching: bool = False,
        **slo: Any,
    ) -> str:
        """Submit a request that arrives now; times are relative. Returns its id; its events are collected.

        ``switching``: it may change among its points, if they allow that.
        """
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
            may_switch=switching and may_switch(LADDERS, [POINTS[name] for name in points]),
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
    """``fake.World``, ``fake.reference(prompt, point_name, n, eos)``, ``fake.ladders``, ``fake.points``;
    ``fake.next_token(history, units, subnet)``: at ``subnet``, if token i has run ``units[i]``; ``fake.risen``."""
    ladders: LadderSet = LADDERS

    def expected(prompt: Sequence[int], point: str, num_tokens: int, eos: Collection[int] = ()) -> list[int]:
        return reference(prompt, ladders.subnet(point), num_tokens, eos)

    return SimpleNamespace(
        World=World,
        reference=expected,
        ladders=ladders,
        points=POINTS,
        vocab=VOCAB,
        next_token=next_token,
        risen=risen,
    )
