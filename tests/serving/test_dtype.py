"""Which type the weights run in."""

from __future__ import annotations

import pytest
import torch

from stepwell.serving import precision
from stepwell.serving.config import ModelConfig
from stepwell.serving.precision import run_dtype

FLOAT, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("configured", "stated", "fast", "expected"),
    [
        ("auto", BRAIN, {FLOAT, BRAIN}, BRAIN),
        ("auto", BRAIN, {FLOAT}, FLOAT),
        ("auto", HALF, {FLOAT, BRAIN}, FLOAT),
        ("auto", FLOAT, {FLOAT}, FLOAT),
        ("auto", BRAIN, set(), BRAIN),  # nothing is known of this processor
        ("bfloat16", FLOAT, {FLOAT}, BRAIN),
        ("float32", BRAIN, {FLOAT, BRAIN}, FLOAT),
    ],
)
def test_auto_avoids_what_the_processor_is_slow_with(monkeypatch, configured, stated, fast, expected) -> None:
    monkeypatch.setattr(precision, "can_pack", lambda dtype: dtype in fast)
    assert run_dtype(ModelConfig("any", dtype=configured), stated) is expected
