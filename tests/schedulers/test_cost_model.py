"""Predictions of steps against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.correction import OnlineCorrection
from stepwell.schedulers.cost_model import LadderCosts, StepCostModel, at, chunk_pairs, step_kind
from stepwell.schedulers.plan import Slice
from stepwell.schedulers.request import SLO, OperatingPoint, Request

# Seconds are whole numbers here, so that sums are exact.
POINTS = tuple(OperatingPoint((k + 1) / 3, 1.0, "depth", k) for k in range(3))
OTHER = OperatingPoint(0.5, 0.9, "width", 0)


def line(fixed: float, per_row: float, rows: int = 40) -> tuple[float, ...]:
    return (0.0, *(fixed + n * per_row for n in range(1, rows + 1)))


DEPTH = LadderCosts(
    points=("depth:0", "depth:1", "depth:2"),
    split=(line(100, 10), line(200, 20), line(400, 40)),
    wide=(None, None, line(10, 50)),
    sequence_s=(1, 2, 3),
    key_s=(5, 10, 15),
    pair_s=(2, 4, 6),
    call_s=(1000, 2000, 3000),
    shared_s=(10_000, 20_000, 30_000),
)
WIDTH = LadderCosts(("width:0",), (line(7, 1),), (None,), (0,), (0,), (0,))


def model(shared_context: int = 0, mixing_s: float = 0.0, output_s: tuple[float, ...] = (0, 0, 0)) -> StepCostModel:
    ladders = {"depth": DEPTH, "width": WIDTH}
    return StepCostModel(1e6, output_s, ladders, OnlineCorrection(), shared_context, mixing_s)


def running(
    point: OperatingPoint, num_tokens: int, start: int, known: int | None = None, exits: Any = None, generated: int = 1
) -> Slice:
    request = Request("r", 0.0, SLO(), (point,), start + num_tokens if known is None else known, 10)
    request.computed_tokens, request.generated_tokens = start, generated
    request.exit_tokens = exits or {}
    return Slice(request, num_tokens, point)


def test_nothing_costs_the_overhead() -> None:
    assert model().raw_s([]) == 1e6


def test_a_chunk_pays_rows_pairs_and_its_calls() -> None:
    rows, pairs = 100 + 30, chunk_pairs(4, 3)
    assert pairs == 3 * 7
    assert model().raw_s([running(POINTS[0], 3, 4)]) == 1e6 + rows + 1 + 1000 + 2 * pairs


def test_a_deeper_level_pays_the_levels_below_too() -> None:
    rows = (100 + 20) + (200 + 40)
    assert model().raw_s([running(POINTS[1], 2, 0)]) == 1e6 + rows + 2 + 2000 + 4 * 4


def test_rows_of_deeper_levels_run_in_the_shallower_ones() -> None:
    slices = [running(POINTS[1], 2, 0), running(POINTS[0], 3, 0)]
    attention = (2 + 2000 + 4 * 4) + (1 + 1000 + 2 * 9)
    assert model().raw_s(slices) == 1e6 + (100 + 50) + (200 + 40) + attention


def test_the_cheaper_of_split_and_wide_counts() -> None:
    few = model().raw_s([running(POINTS[2], 2, 0)]) - (1e6 + 120 + 240 + 3 + 3000 + 6 * 4)
    assert few == min(400 + 2 * 40, 10 + 2 * 50) == 110
    slices = [running(POINTS[2], 1, 0), running(POINTS[1], 20, 0)]
    attention = (3 + 3000 + 15) + (2 + 2000 + 4 * 400)
    wide = model().raw_s(slices) - (1e6 + 310 + (200 + 20 * 21) + attention)
    assert wide == min(400 + 40, 10 + 50 * 21) == 440


def test_decoding_sequences_share_a_call_padded_to_the_longest() -> None:
    slices = [running(POINTS[0], 1, 9), running(POINTS[0], 1, 19), running(POINTS[0], 1, 4)]
    padded = 3 * 20 * 5
    assert model(shared_context=64).raw_s(slices) == 1e6 + (100 + 30) + 3 * 1 + 10_000 + padded


def test_the_padding_of_shallow_layers_counts_everybody_that_of_deep_ones_who_runs_them() -> None:
    slices = [running(POINTS[1], 1, 9), running(POINTS[0], 1, 19)]
    padded = 2 * 20 * 5 + 1 * 10 * (10 - 5)
    shared, rows = 20_000, (100 + 20) + (200 + 20)
    assert model(shared_context=64).raw_s(slices) == 1e6 + rows + (2 + 1) + shared + padded


def test_long_contexts_have_calls_of_their_own() -> None:
    slices = [running(POINTS[0], 1, 63), running(POINTS[0], 1, 9)]
    assert model(shared_context=64).raw_s(slices) == 1e6 + 120 + (1 + 1000 + 5 * 64) + (1 + 10_000 + 5 * 10)


def test_who_samples_pays_the_head() -> None:
    slices = [running(POINTS[0], 2, 0), running(POINTS[0], 2, 0, known=5), running(POINTS[0], 2, 3, known=5)]
    head = model(output_s=(0.0, 7e6, 8e6)).raw_s(slices) - model().raw_s(slices)
    assert head == 8e6


def test_ladders_are_staircases_of_their_own_and_the_overhead_is_paid_once() -> None:
    depth, width = running(POINTS[0], 2, 0), running(OTHER, 5, 0)
    both = model().raw_s([depth, width])
    assert both == model().raw_s([depth]) + model().raw_s([width]) - 1e6
    assert model().raw_s([width, depth, width]) == model().raw_s([width, width, depth])


def test_backfill_runs_the_layers_between() -> None:
    exits = {POINTS[0]: 4, POINTS[1]: 2}
    plain, filled = running(POINTS[2], 1, 9), running(POINTS[2], 1, 9, exits=exits)
    rows = (200 + 20 * 5) + (10 + 50 * 7) - ((200 + 20) + (10 + 50))
    pairs = 4 * 10 * (6 - 2) + 2 * 10 * (6 - 4)
    assert model().raw_s([filled]) - model().raw_s([plain]) == rows + pairs


def test_exits_at_deeper_levels_or_on_other_ladders_cost_nothing() -> None:
    exits = {POINTS[1]: 3, POINTS[2]: 2, OTHER: 9}
    assert model().raw_s([running(POINTS[1], 1, 9, exits=exits)]) == model().raw_s([running(POINTS[1], 1, 9)])


def test_each_further_operating_point_costs_its_mixing() -> None:
    slices = [running(POINTS[0], 1, 0), running(POINTS[2], 1, 0), running(OTHER, 1, 0), running(OTHER, 1, 0)]
    assert model(mixing_s=1e5).raw_s(slices) - model().raw_s(slices) == 2e5
    assert model(mixing_s=1e5).raw_s(slices[:1]) == model().raw_s(slices[:1])


slices_of_any_kind = st.builds(
    running,
    st.sampled_from([*POINTS, OTHER]),
    st.integers(1, 60),
    st.integers(0, 100),
    exits=st.dictionaries(st.sampled_from(POINTS), st.integers(1, 50)),
)


@given(st.lists(slices_of_any_kind, max_size=8), slices_of_any_kind, st.randoms())
def test_a_slice_more_never_costs_less_and_the_order_does_not_matter(
    slices: list[Slice], more: Slice, order: Any
) -> None:
    predictor = model(shared_context=32, mixing_s=5.0)
    assert predictor.raw_s([*slices, more]) >= predictor.raw_s(slices)
    shuffled = [*slices, more]
    order.shuffle(shuffled)
    assert predictor.raw_s(shuffled) == pytest.approx(predictor.raw_s([*slices, more]))


def test_curves_go_on_with_the_slope_of_their_second_half() -> None:
    curve = (0.0, 5.0, 5.0, 8.0, 11.0)
    assert [at(curve, n) for n in (0, 1, 4, 5, 10)] == [0.0, 5.0, 11.0, 14.0, 29.0]


def test_steps_are_told_apart() -> None:
    decode, first = running(POINTS[0], 1, 5), running(POINTS[0], 1, 5, generated=0)
    assert step_kind([decode, decode]) == "decode"
    assert step_kind([decode, first]) == step_kind([decode, running(POINTS[0], 2, 5)]) == "mixed"


def test_predictions_follow_what_is_observed_of_the_same_kind() -> None:
    predictor, decode, chunk = model(), [running(POINTS[0], 1, 5)], [running(POINTS[0], 9, 0)]
    assert predictor.predict_s(decode) == predictor.raw_s(decode) < predictor.promise_s(decode)
    for _ in range(20):
        predictor.expect(decode)(3.0 * predictor.raw_s(decode))
    assert predictor.predict_s(decode) == pytest.approx(3.0 * predictor.raw_s(decode))
    assert predictor.predict_s(chunk) == predictor.raw_s(chunk)


def test_the_rule_of_thumb_is_proportional_to_the_cost_of_the_point() -> None:
    predictor = StepCostModel.linear([*reversed(POINTS), OTHER], full_row_s=3.0, overhead_s=10.0, max_rows=8)
    assert predictor.ladders["depth"].points == ("depth:0", "depth:1", "depth:2")
    slices = [running(POINTS[0], 4, 0), running(POINTS[2], 1, 9), running(OTHER, 20, 0)]
    assert predictor.raw_s(slices) == pytest.approx(10.0 + 4 * 1.0 + 3.0 + 20 * 1.5)
