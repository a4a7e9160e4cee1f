"""Products of slices: packed or plain, with an activation or a bias within the product, the result is the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stepwell.models.kernels.activations import ACTIVATIONS
from stepwell.models.kernels.linear import SliceLinear

TORCH = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
torch.manual_seed(0)
FIRST, SECOND = nn.Linear(12, 20).requires_grad_(False), nn.Linear(12, 9, bias=True).requires_grad_(False)


@pytest.mark.parametrize("budget", [0, 1 << 20])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_torch(name: str, budget: int) -> None:
    x = torch.randn(19, 12) * 3
    first, second = SliceLinear(budget).rows(x, [(FIRST, 3, 17), (SECOND, 0, 9)], name)
    torch.testing.assert_close(first, TORCH[name](FIRST(x)[:, 3:17]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, TORCH[name](SECOND(x)), atol=1e-5, rtol=1e-5)


@given(
    rows=st.integers(1, 70),
    start=st.integers(0, 11),
    budget=st.sampled_from([0, 1 << 20]),
    biased=st.booleans(),
    pads_rows=st.booleans(),
)
def test_columns_add_the_bias_that_is_given(rows: int, start: int, budget: int, biased: bool, pads_rows: bool) -> None:
    h = torch.randn(rows, 12 - start)
    bias = torch.randn(20) if biased else None
    expected = h @ FIRST.weight[:, start:].T + (0 if bias is None else bias)
    out = SliceLinear(budget, pads_rows).columns(h, (FIRST, start, 12), bias)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
