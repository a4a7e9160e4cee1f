"""The same engine with a real (tiny, random) decoder: whatever the engine does, the output stays the same."""

from __future__ import annotations

import pytest

from stepwell.models.sampling import SamplingParams
from stepwell.schedulers.request import SLO, Request
from stepwell.serving.config import ModelConfig
from stepwell.serving.engine.events import FinishEvent, TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.hosting import open_in_thread

PREFIX = tuple(range(20, 33))
PLAN = [
    ((*PREFIX, 1, 2), "depth:2", SamplingParams()),
    ((*PREFIX, 3), "depth:2", SamplingParams(temperature=0.8, seed=7)),
    (PREFIX, "depth:1", SamplingParams()),
    ((5, 6, 7), "width:0", SamplingParams(temperature=1.1, top_k=20, top_p=0.9, seed=1)),
    (PREFIX * 2, "width:0", SamplingParams()),
    ((9,), "depth:0", SamplingParams()),
]


def serve(path, together: bool, **options) -> tuple[list[tuple[int, ...]], list[FinishEvent]]:
    """Token ids and ends of PLAN's requests, all at once or one after the other."""
    hosted = open_in_thread(ModelConfig(source=str(path), **options), None)
    engine, events = hosted.host.engine, [[] for _ in PLAN]
    for i, (prompt, point, sampling) in enumerate(PLAN):
        request = Request(f"r{i}", engine.now(), SLO(), (hosted.points[point],), len(prompt), max_tokens=24)
        engine.submit(GenerationJob(request, prompt, sampling, ignore_eos=True), events[i].append)
        while not together and engine.has_work:
            engine.step()
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    tokens = [tuple(t for e in got if isinstance(e, TokenEvent) for t in e.token_ids) for got in events]
    return tokens, [got[-1] for got in events]


@pytest.fixture(scope="module")
def alone(tiny):
    """Each request by itself with all the room it wants."""
    return serve(tiny, together=False, kv_cache_tokens=4096)[0]


def test_batch_mates_chunks_and_shared_prefixes_change_nothing(tiny, alone) -> None:
    tokens, ends = serve(tiny, together=True, kv_cache_tokens=4096, page_tokens=4, max_step_tokens=7)
    assert tokens == alone
    assert {end.report.generated_tokens for end in ends} == {24}
    assert max(end.report.cached_tokens for end in ends) > 0


def test_being_put_back_changes_nothing(tiny, alone) -> None:
    tokens, ends = serve(tiny, together=True, kv_cache_tokens=72, page_tokens=4, max_step_tokens=16)
    assert tokens == alone
    assert sum(end.report.preemptions for end in ends) > 0
