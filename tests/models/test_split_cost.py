"""The measured cost of FFN products, and what it decides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.models.layers.split_cost import MEASURED_ROWS, MeasuredCost

CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    ffn_channels=16,
    max_positions=32,
)
# Reading weights takes 1 us a channel up to 8 rows; beyond, arithmetic takes 0.1 us a row and channel. A call: 5 us.
ROOFLINE = MeasuredCost(rows=(1, 8, 80), fixed_s=(5e-6, 5e-6, 5e-6), channel_s=(1e-6, 1e-6, 8e-6))
sizes = st.integers(1, 4096)


@pytest.mark.parametrize(("rows", "us"), [(1, 105.0), (8, 105.0), (44, 455.0), (80, 805.0), (152, 1505.0)])
def test_interpolates_between_measured_rows_and_extrapolates_beyond(rows: int, us: float) -> None:
    assert ROOFLINE.seconds(rows, 100) == pytest.approx(us * 1e-6)


def test_few_rows_run_wide_and_many_split() -> None:
    assert ROOFLINE.prefers_wide(100, 4, 100, 2)  # 205 us in one, 210 us in two
    assert not ROOFLINE.prefers_wide(100, 80, 100, 8)  # 1605 us in one, 910 us in two


@given(narrow=sizes, rows=sizes, extra=sizes)
def test_equal_rows_never_split(narrow: int, rows: int, extra: int) -> None:
    assert ROOFLINE.prefers_wide(narrow, rows, extra, rows)


@given(
    fixed=st.lists(st.floats(0, 1e-3), min_size=3, max_size=3),
    slope=st.lists(st.floats(0, 1e-6), min_size=3, max_size=3),
    rows=sizes,
    channels=sizes,
)
def test_noise_never_predicts_a_negative_time(fixed: list[float], slope: list[float], rows: int, channels: int) -> None:
    assert MeasuredCost((1, 8, 80), tuple(fixed), tuple(slope)).seconds(rows, channels) >= 0.0


def test_preparing_measures_only_where_widths_differ() -> None:
    decoder = Decoder(CONFIG)
    assert decoder.prepare_serving(1 << 20, (8, 16)).run_wide is not None
    assert decoder.prepare_serving(1 << 20, (16,)).run_wide is None


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_measures_a_finite_cost_for_every_number_of_rows(budget: int) -> None:
    decoder = Decoder(CONFIG).prepare_serving(budget)
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    cost = MeasuredCost.measure([layer.mlp for layer in decoder.model.layers], decoder.linear, (4, 16))
    assert cost.rows == MEASURED_ROWS
    assert all(math.isfinite(value) and value >= 0.0 for value in (*cost.fixed_s, *cost.channel_s))
    assert cost.seconds(64, 16) > 0.0
    assert all(torch.equal(weight, before[name]) for name, weight in decoder.state_dict().items())
