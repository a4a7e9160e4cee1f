"""From logits to tokens: greedy, temperature, top-k, top-p, with randomness that depends on nothing but the request.

Token i of a request is drawn with number i of a counter-based generator keyed by the request's seed (Philox: Salmon
et al., SC 2011). So a token depends neither on batch-mates nor on whether it was computed before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens: temperature, then top-k, then top-p, each on what the one before left (Hugging Face order).

    Raises ValueError naming the field, the value and the remedy.
    """

    temperature: float = 0.0
    """0 = the most likely token, the lowest id among equals."""
    top_k: int = 0
    """Keep the k most likely tokens and those as likely as the k-th; 0 = all."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens whose probabilities reach this sum; 1 = all."""
    seed: int = 0
    logprobs: bool = False
    """Whether to report the log probability of each token."""

    def __post_init__(self) -> None:
        t, k, p, seed = self.temperature, self.top_k, self.top_p, self.seed
        _check("temperature", t, _is_real(t) and 0 <= t < math.inf, "a finite number >= 0", "0 is greedy")
        _check("top_k", k, _is_whole(k) and k >= 0, "a whole number >= 0", "0 keeps all tokens")
        _check("top_p", p, _is_real(p) and 0 < p <= 1, "a number in (0, 1]", "1 keeps all tokens")
        _check("seed", seed, _is_whole(seed) and 0 <= seed <= MAX_SEED, "a whole number in 0..2**64-1", "0 is usual")
        _check("logprobs", self.logprobs, isinstance(self.logprobs, bool), "true or false", "false reports none")


@dataclass(frozen=True)
class SampledToken:
    """A chosen token."""

    token_id: int
    logprob: float | None = None
    """Natural logarithm of its probability under the model itself, before temperature, top-k and top-p: the
    log-softmax in float32 of the raw logits. None unless asked for."""


def sample(logits_RV: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]) -> list[SampledToken]:
    """Choose one token for each row.

    Args:
        logits_RV: [rows, vocabulary] of any floating dtype.
        params: one a row.
        indices: one a row: the number of tokens that the request generated before this one.

    Raises RuntimeError naming the row if its largest logit is not finite, ValueError if the lengths differ.
    """
    if not len(logits_RV) == len(params) == len(indices):
        raise ValueError(f"sample: {len(logits_RV)} rows, {len(params)} params, {len(indices)} indices; must agree")
    if not params:
        return []
    token_ids = _most_likely(logits_RV)
    return [
        _choose(logits_RV[row], token_ids[row], each, index)
        for row, (each, index) in enumerate(zip(params, indices, strict=True))
    ]


def draw(logits_V: npt.NDArray[np.floating], params: SamplingParams, index: int) -> int:
    """Token ``index`` of a request with ``temperature`` > 0: inverse of the cumulative distribution, in float64."""
    ids, weights = candidates(logits_V, params)
    cumulative = weights.cumsum()
    # uniform() < 1 - 2**-52 keeps the product below the last sum, so the token found has a weight.
    return int(ids[np.searchsorted(cumulative, uniform(params.seed, index) * cumulative[-1], side="right")])


def uniform(seed: int, index: int) -> float:
    """Number ``index`` of the stream of ``seed``: a multiple of 2**-52 in [0, 1)."""
    return float(int(np.random.Philox(key=seed, counter=index).random_raw()) >> 12) * 2.0**-52


def candidates(logits_V: npt.NDArray[np.floating], params: SamplingParams) -> tuple[Ids, Floats]:
    """The tokens that may be drawn, ascending, and weights proportional to their probabilities: [n], [n]."""
    ids: Ids = np.arange(len(logits_V))
    if 0 < params.top_k < len(logits_V):
        ids = np.flatnonzero(logits_V >= torch.from_numpy(logits_V).topk(params.top_k).values[-1].item())
        logits_V = logits_V[ids]
    with np.errstate(over="ignore"):  # a tiny temperature: all but the largest go to -inf
        scores = (logits_V - logits_V.max()).astype(np.float64) / params.temperature
    weights: Floats = np.exp(scores)
    if params.top_p < 1:
        nucleus = _nucleus(weights, params.top_p)
        ids, weights = ids[nucleus], weights[nucleus]
    return ids, weights


def _most_likely(logits_RV: Tensor) -> list[int]:
    """The first of the largest logits of each row."""
    if logits_RV.device.type == "cpu":
        # numpy's argmax is 10 to 20 times as fast as torch's; both return the first of equals, or a NaN.
        logits = logits_RV.detach().float().numpy()
        ids = logits.argmax(axis=1)
        largest = logits[np.arange(len(ids)), ids]
    else:
        top = logits_RV.detach().float().max(dim=-1)
        ids, largest = top.indices.cpu().numpy(), top.values.cpu().numpy()
    finite = np.isfinite(largest)
    if not finite.all():
        row = int(finite.argmin())
        raise RuntimeError(f"logits of row {row}: the largest is {largest[row]}; the model's output is not finite")
    token_ids: list[int] = ids.tolist()
    return token_ids


def _choose(logits_V: Tensor, most_likely: int, params: SamplingParams, index: int) -> SampledToken:
    if not params.temperature and not params.logprobs:
        return SampledToken(most_likely)
    logits = logits_V.detach().float().cpu().numpy()
    token_id = draw(logits, params, index) if params.temperature else most_likely
    if not params.logprobs:
        return SampledToken(token_id)
    shifted = logits - logits.max()
    return SampledToken(token_id, float(shifted[token_id] - np.log(np.exp(shifted).sum())))


def _nucleus(weights: Floats, top_p: float) -> Ids:
    """Positions, ascending, of the largest weights: those preceded by less than ``top_p`` of the total."""
    total = weights.sum()
    # The weights below this sum to at most the share that top_p leaves out: only the others need sorting.
    likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    largest_first = np.sort(weights[likely])[::-1]
    num_kept = min(int(np.searchsorted(largest_first.cumsum(), top_p * total)) + 1, len(likely))
    smallest = largest_first[num_kept - 1]
    above = np.flatnonzero(weights > smallest)
    ties = np.flatnonzero(weights == smallest)[: num_kept - len(above)]
    return np.sort(np.concatenate([above, ties]))


def _check(field: str, value: object, valid: bool, expected: str, remedy: str) -> None:
    if not valid:
        raise ValueError(f"{field}: must be {expected}, got {value!r}; {remedy}")


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
