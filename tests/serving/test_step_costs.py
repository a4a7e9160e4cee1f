"""The tables of a model against the sum of its units, layer by layer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.ladder import Architecture, Ladder, LadderSet, Level, SubNetwork
from stepwell.models.layers.staircase import plan_spans
from stepwell.models.unit_profile import AttendCosts, UnitProfile
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.point_costs import GENERATION, made_up_slice
from stepwell.serving.step_costs import StepResidual, cost_model

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NORM_US = 3.0
LAYERS, GROUPS, CHANNELS = 4, 2, 12


def attention_us(groups: int, rows: int) -> float:
    return NORM_US + 20.0 + 5.0 * groups * rows


def ffn_us(channels: int, rows: int) -> float:
    return NORM_US + 10.0 + 0.5 * channels * rows


def curve(us: list[float]) -> tuple[float, ...]:
    return tuple(1e-6 * each for each in us)


PROFILE = UnitProfile(
    rows=ROWS,
    norm_s=curve([NORM_US] * len(ROWS)),
    attention_s={g: curve([attention_us(g, n) for n in ROWS]) for g in (1, 2)},
    ffn_s={c: curve([ffn_us(c, n) for n in ROWS]) for c in (4, 8, 12)},
    attend={g: AttendCosts(40e-6, 4e-6 * g, 1e-7 * g, 30e-6, 1e-6 * g, 1e-8 * g) for g in (1, 2)},
    output_s=curve([50.0 + n for n in ROWS]),
    shared_context=256,
)
RESIDUAL = StepResidual(scale=1.25, overhead_s=1e-3, sequence_s=2e-5, row_s=3e-6, mixing_s=1e-4)


def ladder(name: str, shapes: list[tuple[int, int, int]]) -> Ladder:
    """``(layers, groups, channels)`` of each level."""
    rest = [LAYERS - layers for layers, _, _ in shapes]
    subnets = [
        SubNetwork((groups,) * layers + (0,) * left, (channels,) * layers + (0,) * left)
        for (layers, groups, channels), left in zip(shapes, rest, strict=True)
    ]
    return Ladder(name, tuple(Level(subnet, 1.0) for subnet in subnets))


LADDERS = LadderSet(
    Architecture(LAYERS, GROUPS, CHANNELS),
    {
        "depth": ladder("depth", [(1, 2, 12), (3, 2, 12), (4, 2, 12)]),
        "both": ladder("both", [(2, 1, 4), (2, 1, 8), (4, 2, 12)]),
    },
    "depth",
)
MODEL = cost_model(PROFILE, RESIDUAL, LADDERS)


def point(ladder_name: str, level: int) -> OperatingPoint:
    return OperatingPoint(0.5, 1.0, ladder_name, level)


def units_of(batch: list[tuple[int, int]], name: str) -> float:
    """Microseconds of the products of prefill chunks ``(level, tokens)`` split exactly, layer by layer."""
    levels = LADDERS.ladders[name].levels
    batch = sorted(batch, reverse=True)
    rows, total = [tokens for _, tokens in batch], 0.0
    for layer in range(LAYERS):
        groups = plan_spans([levels[k].subnet.kv_groups[layer] for k, _ in batch], rows)
        channels = plan_spans([levels[k].subnet.ffn_channels[layer] for k, _ in batch], rows)
        for number, span in enumerate(groups):
            appended = (span.stop - span.start) * 1.0 * span.num_rows
            total += attention_us(span.stop - span.start, span.num_rows) + appended - (NORM_US if number else 0.0)
        for number, span in enumerate(channels):
            total += ffn_us(span.stop - span.start, span.num_rows) - (NORM_US if number else 0.0)
    return total


chunks = st.lists(st.tuples(st.integers(0, 2), st.integers(2, 90)), min_size=1, max_size=4)


@given(chunks)
def test_products_of_a_depth_ladder_are_those_of_its_layers(batch: list[tuple[int, int]]) -> None:
    slices = [made_up_slice(point("depth", level), tokens, 0) for level, tokens in batch]
    depths = [(1, 3, 4)[level] for level, _ in batch]
    attend_us = sum(d * (30.0 + 0.02 * n * n) for d, (_, n) in zip(depths, batch, strict=True))
    output_us = 50.0 + len(batch)
    expected = 1.25 * (units_of(batch, "depth") + attend_us + output_us)
    tokens, kinds = sum(n for _, n in batch), len({level for level, _ in batch})
    expected += 1000.0 + 20.0 * len(batch) + 3.0 * tokens + 100.0 * (kinds - 1)
    assert 1e6 * MODEL.raw_s(slices) == pytest.approx(expected, rel=1e-6)


@given(st.integers(2, 90))
def test_narrow_rows_ride_along_where_that_is_cheaper(tokens: int) -> None:
    costs = MODEL.ladders["both"]
    split, wide = costs.split[1], costs.wide[1]
    assert wide is not None
    assert 1e6 * split[tokens] == pytest.approx(1.25 * 2 * (10.0 + 0.5 * 4 * tokens))
    assert 1e6 * wide[tokens] == pytest.approx(1.25 * 2 * (0.5 * 4 * tokens))
    assert costs.wide[0] is None
    assert MODEL.ladders["depth"].wide == (None, None, None)


def test_layers_and_heads_that_join_are_split_in_both() -> None:
    costs = MODEL.ladders["both"]
    joined = 2 * (20.0 + 5.0 * 7 + 7.0) + 2 * (attention_us(2, 7) + 14.0) + 2 * ffn_us(12, 7)
    assert costs.wide[2] is not None
    assert 1e6 * costs.split[2][7] == pytest.approx(1.25 * (joined + 2 * (10.0 + 0.5 * 4 * 7)))
    assert 1e6 * costs.wide[2][7] == pytest.approx(1.25 * (joined + 2 * (0.5 * 4 * 7)))


def test_attention_is_priced_over_the_layers_of_the_level() -> None:
    costs = MODEL.ladders["depth"]
    assert costs.key_s == pytest.approx([1.25 * layers * 2e-7 for layers in (1, 3, 4)])
    assert costs.shared_s == pytest.approx([1.25 * layers * 40e-6 for layers in (1, 3, 4)])
    assert costs.sequence_s == pytest.approx([2e-5 + 1.25 * layers * (8e-6 - 2e-6) for layers in (1, 3, 4)])
    assert MODEL.shared_context == 256


def test_costs_of_points_are_predictions_of_uniform_steps() -> None:
    cost = GENERATION.costs(MODEL, point("depth", 2))
    assert cost["prompt_ms"] == 1e3 * MODEL.raw_s([made_up_slice(point("depth", 2), 256, 0)])
    assert cost["decode_ms"] < cost["decode_together_ms"] < 16 * cost["decode_ms"]
    assert GENERATION.costs(MODEL, point("depth", 0))["prompt_ms"] < cost["prompt_ms"]
