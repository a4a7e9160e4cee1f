"""A tiny corpus and a tiny recipe: a whole training run takes about a second."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepwell.models.training.config import NestedConfig


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small source files."""
    folder = tmp_path_factory.mktemp("sources")
    for number in range(40):
        draw = random.Random(number)
        lines = [f"def {draw.choice('abcd')}{i}(x):\n    return x + {draw.randint(0, 9)}\n" for i in range(40)]
        (folder / f"file_{number}.py").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def recipe(sources: Path, tmp_path: Path) -> NestedConfig:
    """Three layers, two widths, twenty steps."""
    return replace(NestedConfig(output=tmp_path / "run"), **TINY, sources=sources)


TINY = {
    "held_out_share": 0.2,
    "vocab_size": 300,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "ffn_widths": (16, 32),
    "max_positions": 64,
    "context": 32,
    "num_steps": 20,
    "tokens_per_step": 256,
    "num_exits": 1,
    "warmup_steps": 3,
    "checkpoint_every": 10,
}
