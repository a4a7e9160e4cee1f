"""bfloat16 checkpoints: as near to the exact answer as transformers is, and exact when run in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stepwell.models.loader import LoadedModel, open_model

PROMPT = [int(token) for token in torch.randint(0, 61, (30,), generator=torch.Generator().manual_seed(0))]
CHUNKS = (12, 13, 1, 1, 1, 1, 1)
LAST_ROWS = [11, 24, 25, 26, 27, 28, 29]
LADDERS = {"cuts": {"levels": [{"layers": 2, "ffn": 20, "kv_groups": 1}, {}]}}
CUT = LADDERS["cuts"]["levels"][0]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "mistral"])
def answers(
    request: Any, make_checkpoint: Any, cut: Any, reference_logits: Any
) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """A bfloat16 checkpoint and, per level, what transformers answers in bfloat16, and in float32 with its weights."""
    fields = {"mistral": {"sliding_window": 5}, "llama": {"tie_word_embeddings": True}}.get(request.param, {})
    checkpoint = make_checkpoint(request.param, dtype=torch.bfloat16, ladders=LADDERS, **fields)
    logits = {}
    for level, fields in {"cuts:0": CUT, "cuts:1": {}}.items():
        model = cut(checkpoint.reference, **fields)
        rounded = reference_logits(model, PROMPT).float()
        logits[level] = (rounded, reference_logits(model.float(), PROMPT))
    return checkpoint, logits


@pytest.fixture(scope="module")
def opened(answers: Any) -> LoadedModel:
    return open_model(str(answers[0].path))


def error(logits: Tensor, exact: Tensor) -> float:
    return float((logits.float() - exact).square().mean().sqrt())


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed_bytes", [0, 1 << 24], ids=["plain", "packed"])
@pytest.mark.parametrize("level", ["cuts:0", "cuts:1"])
def test_served_in_bfloat16(
    level: str, packed_bytes: int, cache_dtype: torch.dtype, answers: Any, opened: LoadedModel, serving_loop: Any
) -> None:
    assert opened.decoder.dtype == opened.config.dtype == torch.bfloat16
    rounded, exact = answers[1][level]
    loop = serving_loop(opened.decoder.prepare_serving(packed_bytes), dtype=cache_dtype)
    served = loop.replay(opened.ladders.subnet(level), PROMPT, CHUNKS)
    assert served.dtype == torch.bfloat16
    theirs = error(rounded[LAST_ROWS], exact[LAST_ROWS])
    assert error(served, exact[LAST_ROWS]) < 1.5 * theirs
    assert theirs < 0.1 * exact.std()


@pytest.mark.parametrize("level", ["cuts:0", "cuts:1"])
def test_dense_in_bfloat16(level: str, answers: Any, opened: LoadedModel) -> None:
    rounded, exact = answers[1][level]
    with torch.no_grad():
        states = opened.decoder.forward_dense(torch.tensor([PROMPT]), opened.ladders.subnet(level))
    assert error(opened.decoder.logits(states[-1])[0], exact) < 1.5 * error(rounded, exact)


@pytest.mark.parametrize("level", ["cuts:0", "cuts:1"])
def test_opened_in_float32_the_weights_are_the_same(level: str, answers: Any, serving_loop: Any) -> None:
    checkpoint, logits = answers
    opened = open_model(str(checkpoint.path), dtype=torch.float32)
    assert opened.decoder.dtype == torch.float32
    served = serving_loop(opened.decoder).replay(opened.ladders.subnet(level), PROMPT, CHUNKS)
    torch.testing.assert_close(served, logits[level][1][LAST_ROWS], atol=1e-4, rtol=0)


def test_float16_weights_are_run_in_float32(make_checkpoint: Any, reference_logits: Any, serving_loop: Any) -> None:
    checkpoint = make_checkpoint(dtype=torch.float16)
    opened = open_model(str(checkpoint.path))
    served = serving_loop(opened.decoder).replay(opened.ladders.subnet("max"), PROMPT, CHUNKS)
    expected = reference_logits(checkpoint.reference.float(), PROMPT)[LAST_ROWS]
    torch.testing.assert_close(served, expected, atol=1e-4, rtol=0)
