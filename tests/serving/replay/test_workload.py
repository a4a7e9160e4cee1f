"""Windows, rates, lengths, classes and prompts of a workload."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.serving.replay.workload import Arrival, Workload

ARRIVALS = st.lists(
    st.builds(Arrival, st.floats(0, 1e4), st.integers(1, 5000), st.integers(1, 5000)), min_size=2, max_size=30
)


@given(ARRIVALS, st.floats(0.01, 1000))
def test_a_rate_stretches_time_and_keeps_its_structure(arrivals, rate):
    workload = Workload.of("w", arrivals)
    if workload.span_s < 1e-6:
        return
    scaled = workload.at_rate(rate)
    assert scaled.rate == pytest.approx(rate)
    gaps = [b.at_s - a.at_s for a, b in zip(workload.arrivals, workload.arrivals[1:], strict=False)]
    factor = scaled.span_s / workload.span_s
    scaled_gaps = [b.at_s - a.at_s for a, b in zip(scaled.arrivals, scaled.arrivals[1:], strict=False)]
    assert scaled_gaps == pytest.approx([gap * factor for gap in gaps], abs=1e-9 * scaled.span_s)
    assert [(a.prompt_tokens, a.output_tokens) for a in scaled.arrivals] == [
        (a.prompt_tokens, a.output_tokens) for a in workload.arrivals
    ]


@given(ARRIVALS, st.integers(2, 4000))
def test_fitted_lengths_fit_and_shrink_by_one_factor(arrivals, context):
    workload = Workload.of("w", arrivals)
    fitted = workload.fitted(context)
    for before, after in zip(workload.arrivals, fitted.arrivals, strict=True):
        assert 1 <= after.prompt_tokens <= before.prompt_tokens
        assert 1 <= after.output_tokens <= before.output_tokens
        assert after.prompt_tokens + after.output_tokens <= context
    if all(a.prompt_tokens + a.output_tokens <= context for a in arrivals):
        assert fitted == workload


def test_the_factor_and_what_was_clipped_are_stated():
    arrivals = [Arrival(i, 300, 100) for i in range(19)] + [Arrival(19, 3000, 1000)]
    fitted = Workload.of("w", arrivals).fitted(200)
    assert {(a.prompt_tokens, a.output_tokens) for a in fitted.arrivals[:19]} == {(150, 50)}
    assert fitted.arrivals[19] == Arrival(19, 100, 100)
    assert fitted.notes == ("lengths x 0.5 to fit a context of 200 tokens, 1 of 20 clipped",)


def test_a_window_starts_at_zero():
    workload = Workload.of("w", [Arrival(10 + i, 1, 1) for i in range(10)])
    assert [a.at_s for a in workload.window(2, 3).arrivals] == [0, 1, 2]
    assert [a.at_s for a in workload.window(num_requests=2).arrivals] == [0, 1]
    assert workload.window() == workload
    with pytest.raises(ValueError, match="no requests in it; take a larger window"):
        workload.window(100)


def test_classes_are_drawn_by_share_and_seed():
    workload = Workload.of("w", [Arrival(i, 1, 1) for i in range(2000)])
    drawn = workload.with_classes({"a": 3, "b": 1, "c": 0}, seed=1)
    counts = Counter(a.slo_class for a in drawn.arrivals)
    assert 1400 < counts["a"] < 1600
    assert counts["a"] + counts["b"] == 2000
    assert drawn == workload.with_classes({"a": 3, "b": 1, "c": 0}, seed=1)
    assert drawn != workload.with_classes({"a": 3, "b": 1, "c": 0}, seed=2)
    with pytest.raises(ValueError, match="shares must be >= 0 and one positive"):
        workload.with_classes({"a": 0.0})


def test_rates_that_cannot_be():
    at_once = Workload.of("w", [Arrival(5, 1, 1), Arrival(5, 1, 1)])
    assert at_once.rate == math.inf
    with pytest.raises(ValueError, match="arrive at once and have no rate"):
        at_once.at_rate(1)
    with pytest.raises(ValueError, match="rate: must be positive and finite"):
        at_once.at_rate(math.nan)
    with pytest.raises(ValueError, match="w: no requests"):
        Workload.of("w", [])


def test_prompts_share_what_their_prefixes_share():
    arrivals = [
        Arrival(0, 100, 1, prefix=(7, 8, 9)), Arrival(1, 70, 1, prefix=(7, 8)), Arrival(2, 90, 1, prefix=(7, 5)),
        Arrival(3, 50, 1), Arrival(4, 50, 1),
    ]  # fmt: skip
    workload = replace(Workload.of("w", arrivals), prefix_block_tokens=32)
    prompts = [workload.prompt_ids(n, vocab_size=50) for n in range(5)]
    assert [len(prompt) for prompt in prompts] == [100, 70, 90, 50, 50]
    assert prompts[0][:64] == prompts[1][:64]
    assert prompts[0][:32] == prompts[2][:32]
    assert prompts[0][32:64] != prompts[2][32:64]
    assert prompts[3] != prompts[4]
    assert all(0 <= token < 50 for prompt in prompts for token in prompt)
    assert prompts[0][:32] not in (prompts[3][:32], prompts[4][:32])


@given(st.integers(2, 1000), st.integers(4, 60))
def test_prompts_without_prefix_are_all_different(vocab_size, length):
    workload = Workload.of("w", [Arrival(i, length, 1) for i in range(300)])
    prompts = {workload.prompt_ids(n, vocab_size) for n in range(300)}
    assert len(prompts) == 300 or vocab_size**length < 10**6
