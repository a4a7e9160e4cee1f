"""Sampling: the same distributions as transformers' warpers, randomness that depends on seed and index alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from stepwell.models.sampling import SampledToken, SamplingParams, candidates, sample, uniform

TEMPERATURES = st.floats(0.1, 3.0)
TOP_K = st.integers(0, 60)
TOP_P = st.floats(0.05, 1.0)


def logits_of(seed: int, num_rows: int, vocab_size: int) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def warped_by_transformers(logits_V: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities [vocabulary] in float64."""
    scores = TemperatureLogitsWarper(float(params.temperature))(None, logits_V[None].double())
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return scores.softmax(dim=-1)[0]


def probabilities(logits_V: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    ids, weights = candidates(logits_V.numpy(), params)
    probs = np.zeros(len(logits_V))
    probs[ids] = weights / weights.sum()
    return torch.from_numpy(probs)


@given(st.integers(0, 1000), st.integers(2, 50), TEMPERATURES, TOP_K, TOP_P)
def test_distribution_is_that_of_transformers(
    seed: int, vocab_size: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = logits_of(seed, 1, vocab_size)[0]
    params = SamplingParams(temperature, top_k, top_p)
    torch.testing.assert_close(
        probabilities(logits, params), warped_by_transformers(logits, params), atol=1e-6, rtol=1e-5
    )


def test_top_k_keeps_ties_and_top_p_keeps_the_lowest_ids_of_ties() -> None:
    flat = torch.tensor([0.0, 1.0, 1.0, 1.0, -5.0])
    assert candidates(flat.numpy(), SamplingParams(1.0, top_k=2))[0].tolist() == [1, 2, 3]
    equal = torch.zeros(4)
    assert candidates(equal.numpy(), SamplingParams(1.0, top_p=0.5))[0].tolist() == [0, 1]
    assert candidates(equal.numpy(), SamplingParams(1.0, top_p=0.51))[0].tolist() == [0, 1, 2]
    assert candidates(equal.numpy(), SamplingParams(1.0, top_p=1e-9))[0].tolist() == [0]


@pytest.mark.parametrize(
    "params", [SamplingParams(1.0), SamplingParams(0.7, top_k=5), SamplingParams(1.3, top_p=0.8)], ids=str
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    """Chi-square of 4000 draws with fixed seeds, far from both 0 (not random) and the 0.999 quantile (biased)."""
    logits = logits_of(7, 1, 12)
    num_draws = 4000
    drawn = [sample(logits, [params], [index])[0].token_id for index in range(num_draws)]
    probs = warped_by_transformers(logits[0], params)
    counts = torch.bincount(torch.tensor(drawn), minlength=12).double()
    possible = probs > 0
    assert counts[~possible].sum() == 0
    expected = probs[possible] * num_draws
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    freedom = int(possible.sum()) - 1
    upper = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson-Hilferty
    assert 0.05 * freedom < statistic < upper


def test_draws_at_the_edges_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(number: float, logits: list[float]) -> int:
        monkeypatch.setattr("stepwell.models.sampling.uniform", lambda seed, index: number)
        return sample(torch.tensor([logits]), [SamplingParams(1.0)], [0])[0].token_id

    assert drawn(0.0, [-math.inf, 1.0, 1.0]) == 1
    assert drawn(0.5, [-math.inf, 1.0, 1.0]) == 2
    assert drawn(1 - 2.0**-52, [0.3, 0.1, 0.2, -math.inf]) == 2


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_uniform_is_a_function_of_seed_and_index(seed: int, index: int) -> None:
    assert uniform(seed, index) == uniform(seed, index)
    assert 0 <= uniform(seed, index) < 1
    assert uniform(seed, index) != uniform(seed, index + 1)


def test_uniform_never_changes_between_releases() -> None:
    """A seed that a client stored must give the same text again."""
    assert [uniform(0, 0), uniform(1, 0), uniform(0, 1), uniform(2**64 - 1, 10)] == [
        0.011546754286331451,
        0.3035680343067586,
        0.5023796042735054,
        0.4914702302688503,
    ]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.just(0.0) | TEMPERATURES,
    top_k=TOP_K,
    top_p=TOP_P,
    seed=st.integers(0, 99),
    logprobs=st.booleans(),
)


@given(st.data(), st.integers(1, 6))
def test_tokens_do_not_depend_on_batch_mates(data: st.DataObject, num_rows: int) -> None:
    logits = logits_of(data.draw(st.integers(0, 99)), num_rows, 40)
    params = [data.draw(PARAMS) for _ in range(num_rows)]
    indices = [data.draw(st.integers(0, 500)) for _ in range(num_rows)]
    together = sample(logits, params, indices)
    alone = [sample(logits[i : i + 1], [params[i]], [indices[i]])[0] for i in range(num_rows)]
    assert together == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_lowest_id_among_equals(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0], [-math.inf, -math.inf, 0.5]], dtype=dtype)
    assert sample(logits, [SamplingParams()] * 3, [0, 1, 2]) == [SampledToken(1), SampledToken(0), SampledToken(2)]


def test_a_tiny_temperature_is_greedy() -> None:
    logits = logits_of(3, 1, 30)
    for temperature in (1e-6, 1e-300):
        assert sample(logits, [SamplingParams(temperature)], [0])[0].token_id == int(logits.argmax())


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprob_is_that_of_the_model_before_warping(temperature: float, dtype: torch.dtype) -> None:
    logits = logits_of(5, 4, 30).to(dtype)
    params = SamplingParams(temperature, top_k=3, seed=1, logprobs=True)
    tokens = sample(logits, [params] * 4, range(4))
    wanted = logits.float().log_softmax(dim=-1)
    for row, token in enumerate(tokens):
        assert token.logprob == pytest.approx(float(wanted[row, token.token_id]), abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_name_their_row(bad: float) -> None:
    logits = logits_of(1, 3, 10)
    logits[1] = bad
    with pytest.raises(RuntimeError, match="logits of row 1"):
        sample(logits, [SamplingParams(), SamplingParams(1.0), SamplingParams()], [0, 0, 0])
    one_nan = logits_of(1, 2, 10)
    one_nan[1, 4] = math.nan
    with pytest.raises(RuntimeError, match="logits of row 1"):
        sample(one_nan, [SamplingParams()] * 2, [0, 0])


def test_rows_and_params_must_agree() -> None:
    assert sample(torch.empty(0, 10), [], []) == []
    with pytest.raises(ValueError, match="2 rows, 1 params"):
        sample(torch.zeros(2, 10), [SamplingParams()], [0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.0),
        ("logprobs", 1),
    ],
)
def test_bad_values_are_refused_with_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}: must be .*, got ") as caught:
        SamplingParams(**{field: value})
    assert repr(value) in str(caught.value)
