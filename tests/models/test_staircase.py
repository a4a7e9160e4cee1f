"""The plan of the staircase: which rows run which units, whatever the mix (properties)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.ladder import SubNetwork
from stepwell.models.layers.staircase import Span, WideRule, plan_spans
from stepwell.models.packed import plan_layers

RUNS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=6)
SORTED_RUNS = RUNS.map(lambda runs: sorted(runs, key=lambda run: -run[0]))
WIDE_RULES = st.functions(like=lambda narrow, narrow_rows, extra, extra_rows: True, returns=st.booleans(), pure=True)


def rows_of(span: Span) -> list[int]:
    return list(range(span.rows)) if isinstance(span.rows, int) else span.rows.tolist()


def times_run(spans: Sequence[Span], num_rows: int, num_units: int) -> torch.Tensor:
    """How often each unit counts for each row: [rows, units], voided ones left out."""
    counts = torch.zeros(num_rows, num_units)
    for span in spans:
        mine = span.void(torch.ones(span.num_rows, span.stop - span.start))
        counts[rows_of(span), span.start : span.stop] += mine
    return counts


def wanted(runs: Sequence[tuple[int, int]], num_units: int) -> torch.Tensor:
    widths = torch.tensor([width for width, rows in runs for _ in range(rows)])
    return (torch.arange(num_units) < widths[:, None]).float()


def plan(runs: Sequence[tuple[int, int]], run_wide: WideRule | None = None) -> tuple[Span, ...]:
    return plan_spans([width for width, _ in runs], [rows for _, rows in runs], run_wide)


@given(runs=RUNS)
def test_every_row_runs_its_own_prefix_exactly_once(runs: list[tuple[int, int]]) -> None:
    expected = wanted(runs, 7)
    assert torch.equal(times_run(plan(runs), *expected.shape), expected)


@given(runs=SORTED_RUNS, run_wide=WIDE_RULES)
def test_wide_spans_void_what_is_not_the_rows_own(runs: list[tuple[int, int]], run_wide: WideRule) -> None:
    expected = wanted(runs, 7)
    assert torch.equal(times_run(plan(runs, run_wide), *expected.shape), expected)


@given(runs=RUNS, run_wide=WIDE_RULES)
def test_spans_ascend_and_touch(runs: list[tuple[int, int]], run_wide: WideRule) -> None:
    spans = plan(runs, run_wide)
    widest = max(width for width, _ in runs)
    assert [span.start for span in spans] == ([0, *[span.stop for span in spans]][: len(spans)] if widest else [])
    assert all(span.start < span.stop and span.num_rows > 0 for span in spans)
    assert (spans[-1].stop if spans else 0) == widest


@given(runs=SORTED_RUNS)
def test_a_sorted_batch_needs_no_gathering(runs: list[tuple[int, int]]) -> None:
    spans = plan(runs)
    assert all(isinstance(span.rows, int) for span in spans)
    assert [span.num_rows for span in spans] == sorted((span.num_rows for span in spans), reverse=True)
    assert len(spans) == len({width for width, _ in runs} - {0})


@given(runs=RUNS.filter(lambda runs: any(a[0] < b[0] for a, b in pairwise(runs))))
def test_an_unsorted_batch_is_gathered_and_never_wide(runs: list[tuple[int, int]]) -> None:
    spans = plan(runs, lambda *_: True)
    assert all(isinstance(span.rows, torch.Tensor) and not span.edges for span in spans)


@given(width=st.integers(1, 6), rows=st.lists(st.integers(1, 4), min_size=1), run_wide=WIDE_RULES)
def test_a_uniform_batch_is_one_product_for_all_rows(width: int, rows: list[int], run_wide: WideRule) -> None:
    assert plan([(width, n) for n in rows], run_wide) == (Span(0, width, sum(rows)),)


@given(runs=SORTED_RUNS)
def test_always_wide_is_one_product_for_all_rows_that_run_anything(runs: list[tuple[int, int]]) -> None:
    spans = plan(runs, lambda *_: True)
    assert [(span.start, span.stop, span.num_rows) for span in spans] == [
        (0, runs[0][0], sum(rows for width, rows in runs if width))
    ][: 1 if runs[0][0] else 0]


@given(runs=SORTED_RUNS)
def test_never_wide_is_the_exact_plan(runs: list[tuple[int, int]]) -> None:
    assert plan(runs, lambda *_: False) == plan(runs)


def test_the_wide_rule_is_asked_about_both_slices() -> None:
    asked: list[tuple[int, ...]] = []

    def rule(*sizes: int) -> bool:
        asked.append(sizes)
        return len(asked) == 1

    spans = plan([(8, 1), (6, 2), (2, 4), (0, 8)], rule)
    assert asked == [(2, 7, 4, 3), (6, 7, 2, 1)]  # the second question is about the product joined by the first
    assert spans == (Span(0, 6, 7, edges=((2, 3),)), Span(6, 8, 1))


@given(runs=RUNS)
def test_take_and_add_are_of_the_same_rows(runs: list[tuple[int, int]]) -> None:
    num_rows = sum(rows for _, rows in runs)
    x = torch.arange(num_rows * 2.0).view(num_rows, 2)
    for span in plan(runs):
        taken = span.take(x)
        assert torch.equal(taken, x[rows_of(span)])
        added = span.add_to(torch.zeros(num_rows, 2), torch.ones(span.num_rows, 2))
        expected = torch.zeros(num_rows, 2)
        expected[rows_of(span)] = 1
        assert torch.equal(added, expected)


@given(
    widths=st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=3, max_size=3), st.lists(st.integers(0, 5), min_size=3, max_size=3)
        ),
        min_size=1,
        max_size=4,
    ),
    repeats=st.lists(st.integers(1, 3), min_size=4, max_size=4),
)
def test_every_layer_of_a_batch_runs_what_its_sequences_want(
    widths: list[tuple[list[int], list[int]]], repeats: list[int]
) -> None:
    subnets = [SubNetwork(tuple(groups), tuple(channels)) for groups, channels in widths]
    batch = [subnet for subnet, repeat in zip(subnets, repeats, strict=False) for _ in range(repeat)]
    num_rows = [1 + i % 3 for i in range(len(batch))]
    plans = plan_layers(batch, num_rows)
    assert len(plans) == max(subnet.depth for subnet in batch)
    pick: dict[str, Callable[[SubNetwork], tuple[int, ...]]] = {
        "attention": lambda subnet: subnet.kv_groups,
        "ffn": lambda subnet: subnet.ffn_channels,
    }
    for layer, layer_plan in enumerate(plans):
        for name, units in pick.items():
            expected = wanted([(units(s)[layer], n) for s, n in zip(batch, num_rows, strict=True)], 6)
            assert torch.equal(times_run(getattr(layer_plan, name), *expected.shape), expected)


def test_a_batch_of_one_level_is_one_span_in_every_sub_layer_even_with_a_rule() -> None:
    subnet = SubNetwork((2, 1, 0), (5, 0, 3))
    plans = plan_layers([subnet] * 5, [3, 1, 1, 7, 2], lambda *_: False)
    assert [(len(p.attention), len(p.ffn)) for p in plans] == [(1, 1), (1, 0), (0, 1)]
    assert {span.rows for p in plans for span in (*p.attention, *p.ffn)} == {14}


@given(runs=SORTED_RUNS)
def test_attention_is_never_wide(runs: list[tuple[int, int]]) -> None:
    subnets = [SubNetwork((width,), (width,)) for width, _ in runs]
    for layer_plan in plan_layers(subnets, [rows for _, rows in runs], lambda *_: True):
        assert all(not span.edges for span in layer_plan.attention)
        assert [span.start for span in layer_plan.ffn] == [0][: len(layer_plan.ffn)]
