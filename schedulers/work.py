"""What is left to do for a request, as a row of numbers: a queue of any length becomes an array by one join.

A request's work comes in two kinds. Rows of its prompt are all due at once, when its first token is. The tokens after
that are due one by one, at a steady rate; whatever is left is due when the answer must be complete.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Work: TypeAlias = npt.NDArray[np.float64]
"""[requests, NUM_COLUMNS]."""
Row: TypeAlias = tuple[float, float, float, float, float, float, float, float]

PROMPT, PROMPT_DUE_S, TOKENS, RATE, OFFSET, END_S, CONTEXT, PERIOD_S = range(8)
"""Columns: rows of prompt to compute; when they are due; tokens to generate after that; of which ``t * RATE + OFFSET``
are due at time t, none before and all of them after, which is at ``END_S``; keys that such a token reads, on average;
``1 / RATE``. What is due never has ``RATE`` 0 and times ``inf``."""
NUM_COLUMNS = 8
AT_ONCE_S = 1e-3
"""Tokens that are all due at the same time count as due one by one within this time before."""

A_TOKEN: Array = np.array([0.0, 0.0, -1.0, 0.0, -1.0, 0.0, 0.5, 0.0])
"""What a generated token changes in the row of a request that decodes. (Where ``RATE`` is 0, ``OFFSET`` may be anything
up to 0.)"""

_DUES = np.array([PROMPT_DUE_S, END_S])
_ROW = Struct(f"{NUM_COLUMNS}d")


def row(
    prompt: int, due_s: float, tokens: int, next_due_s: float, tpot_s: float, deadline_s: float, known: float
) -> Row:
    """A row of :data:`Work`.

    Args:
        prompt: rows to compute before the next token can be sampled; 0 if it is one that decodes.
        due_s: when they are due; inf = never.
        tokens: to be generated after that.
        next_due_s: when the first of these is due; inf = never.
        tpot_s: time between two of them; inf = not asked.
        deadline_s: when all is due; inf = never.
        known: tokens that are known now, as far as its tokens attend to them.
    """
    context = known + 0.5 * tokens
    if next_due_s < math.inf and tpot_s > 0.0:
        end_s = next_due_s + (tokens - 1) * tpot_s
        if end_s > deadline_s > next_due_s:  # a hurried pace from the first of them to the last keeps both promises
            end_s, tpot_s = deadline_s, (deadline_s - next_due_s) / (tokens - 1)
        if end_s <= deadline_s:
            rate = 1.0 / tpot_s
            return prompt, due_s, tokens, rate, 1.0 - next_due_s * rate, end_s, context, tpot_s
    if deadline_s == math.inf:
        return prompt, due_s, tokens, 0.0, 0.0, math.inf, context, math.inf
    rate = max(tokens, 1) / AT_ONCE_S
    return prompt, due_s, tokens, rate, tokens - deadline_s * rate, deadline_s, context, 1.0 / rate


def pack(row_: Row) -> bytes:
    """As :func:`table` takes it."""
    return _ROW.pack(*row_)


def unpack(packed: bytes) -> Row:
    """The opposite."""
    return _ROW.unpack(packed)


def before_decoding(whole: Row) -> Row:
    """From all of a request's work, what :data:`A_TOKEN` times its generated tokens is to be added to once it decodes:
    then that is what is left."""
    _, _, tokens, rate, offset, end_s, context, period_s = whole
    return 0.0, math.inf, tokens + 1.0, rate, offset + 1.0 if rate else 0.0, end_s, context + 0.5, period_s


def table(rows: Sequence[Row], packed: Iterable[bytes] = ()) -> Work:
    """An array of ``rows``, then of packed ones."""
    whole = np.frombuffer(bytearray().join(packed), np.float64).reshape(-1, NUM_COLUMNS)
    return np.concatenate((np.array(rows, np.float64), whole)) if rows else whole


def check_times(work: Work, after_s: float, at_most: int) -> Array:
    """Times worth checking a demand at, ascending: when something of it is due, at most so many of them.

    The first half are the earliest; the others are spread evenly over those that follow, with the last.
    """
    dues: Array = work.T.take(_DUES, 0).ravel()
    dues.sort()
    dues = dues[dues.searchsorted(after_s, "right") : dues.searchsorted(math.inf)]
    return dues.take(_checked(len(dues), at_most)) if len(dues) > at_most else dues


@lru_cache(maxsize=1024)
def _checked(num: int, at_most: int) -> npt.NDArray[np.intp]:
    """Which of so many times, more than ``at_most``. Not to be changed."""
    num_early = at_most // 2
    num_late = num - num_early
    stride = -(-num_late // (at_most - num_early))
    return np.array([*range(num_early), *range(num_early + (num_late - 1) % stride, num, stride)], np.intp)
