from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from stepwell.serving import Engine
from stepwell.serving.errors import RequestError, Status

PROMPT = "class Queue:\n    def __init__(self"


@pytest.fixture(scope="module")
def engine():
    with Engine.open("nested-lm", kv_cache_mib=16) as opened:
        yield opened


def test_generate_returns_text_tokens_and_report(engine):
    found = engine.generate(PROMPT, max_tokens=9, operating_point="depth:3", slo_ms=60_000)
    assert found.text
    assert len(found.token_ids) == found.report.generated_tokens <= 9
    assert found.report.operating_point == "depth:3"
    assert found.report.slo_ms == 60_000
    assert found.report.outcome == "met"


def test_stream_yields_the_same_in_pieces(engine):
    chunks = list(engine.stream(PROMPT, max_tokens=9, logprobs=True))
    whole = engine.generate(PROMPT, max_tokens=9, logprobs=True)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
    assert [chunk.report is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert len(whole.logprobs) == len(whole.token_ids)
    assert max(whole.logprobs) <= 0.0


def test_token_ids_are_a_prompt_too(engine):
    first = engine.generate(PROMPT, max_tokens=4)
    again = engine.generate(list(range(5)) + list(first.token_ids), max_tokens=2)
    assert again.report.prompt_tokens == 5 + len(first.token_ids)


def test_threads_share_the_engine_and_get_what_they_would_alone(engine):
    points = ["min", "max", "depth:1", "width:0"]
    alone = [engine.generate(PROMPT, max_tokens=12, operating_point=point).token_ids for point in points]
    with ThreadPoolExecutor(len(points)) as threads:
        asked = [threads.submit(engine.generate, PROMPT, max_tokens=12, operating_point=point) for point in points]
        assert [future.result().token_ids for future in asked] == alone


def test_leaving_a_stream_frees_the_engine_for_others(engine):
    for _ in engine.stream(PROMPT, max_tokens=900, ignore_eos=True):
        break
    assert engine.generate(PROMPT, max_tokens=2).report.generated_tokens <= 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"slo_ms": -1}, "slo_ms"),
        ({"operating_point": "depth:99"}, "operating_point"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a", 1]}, "stop"),
        ({"max_token": 3}, "max_token"),
        ({"temperature": "warm"}, "temperature"),
    ],
)
def test_nonsense_is_refused_by_name(engine, options, named):
    with pytest.raises(RequestError, match=named) as caught:
        engine.generate(PROMPT, **options)
    assert caught.value.code is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("prompt", ["", [], [-1], [10**6]])
def test_bad_prompts_are_refused(engine, prompt):
    with pytest.raises(RequestError) as caught:
        engine.generate(prompt)
    assert caught.value.code is Status.INVALID_ARGUMENT


def test_models_and_options_that_cannot_be_opened():
    with pytest.raises(ValueError, match="no-such-model"):
        Engine.open("no-such-model")
    with pytest.raises(ValueError, match="kv_cache_mb: unknown key"):
        Engine.open("nested-lm", kv_cache_mb=4)


def test_closing_twice_is_once():
    engine = Engine.open("nested-lm")
    engine.close()
    engine.close()
