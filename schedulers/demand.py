"""How much work is due by when: what the engine must not fall behind.

The demand bound of real-time scheduling (Baruah, Rosier and Howell, RTSS 1990): deadlines can be met on one processor
if, for every time t, the work due by t fits into the time until t. Here work has a level, so the bound says which
levels are affordable.
"""

from __future__ import annotations

import numpy as np

from stepwell.schedulers.work import OFFSET, PROMPT_DUE_S, RATE, TOKENS, Array, Work


class Demand:
    """What of ``work`` is due by each of ``times``, ascending."""

    def __init__(self, work: Work, times: Array) -> None:
        self.times = times
        self._work, self._at = work, times[:, None]
        columns, at = work.T, self._at
        due = columns[RATE] * at
        due += columns[OFFSET]
        np.minimum(due, columns[TOKENS], out=due)
        np.maximum(due, 0.0, out=due)
        self._tokens = due
        """[times, requests]: generated tokens."""

    def num_steps(self) -> Array:
        """[times]: steps it takes at least to generate so many tokens one after the other."""
        steps: Array = np.maximum.reduce(self._tokens, axis=1, initial=0.0)
        return steps

    def seconds(self, token_s: Array, prompt_s: Array | None) -> Array:
        """[times, levels] engine time, fixed parts of decoding steps apart; the arguments: [levels, requests] of a
        token, of a prompt (None = nobody has any)."""
        seconds: Array = self._tokens @ token_s.T
        if prompt_s is not None:
            is_due = np.empty(self._tokens.shape)
            np.less_equal(self._work[:, PROMPT_DUE_S], self._at, out=is_due)
            seconds += is_due @ prompt_s.T
        return seconds
