"""What surrounds an engine's steps on a real machine, in virtual time.

Other programs slow steps down, the engine itself takes time around each, and the endpoint reads calls and writes tokens
one after the other on one core, which a load generator on the same machine shares: when some hundred calls come at
once, the last of them is known to the engine only once those before it have been read. Output waits for calls, as in
:mod:`~stepwell.serving.courier`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Surroundings:
    """Of one server. By default steps take what the model's costs say, and nothing else takes any time."""

    slowness: float = 1.0
    """How many times as long as that a step takes."""
    step_s: float = 0.0
    """What each takes besides."""
    call_s: float = 0.0
    """Time of the endpoint to read a call and hand it to an engine, or refuse it."""
    token_s: float = 0.0
    """Time of the endpoint to write the output of one step to one reader."""
    toll_s: float = 0.0
    """What a call takes from the step that runs when it comes: processor time that both would have."""

    def seconds(self, raw_s: float) -> float:
        """How long a step takes that takes ``raw_s`` by the model's costs."""
        return raw_s * self.slowness + self.step_s


def fit_steps(steps: Sequence[tuple[float, float, int]]) -> tuple[float, float]:
    """``slowness`` and ``step_s`` by least squares over kinds of steps: of each the mean seconds by the model's costs,
    the mean that they took, and their number, by which its squared error counts. Where the best ``step_s`` would be
    negative it is 0, and ``slowness`` the best without it."""
    raw_s, actual_s, number = np.array(steps).T
    root = np.sqrt(number)
    for columns in ((raw_s, np.ones(len(raw_s))), (raw_s,)):
        found, *_ = np.linalg.lstsq(np.stack(columns, 1) * root[:, None], actual_s * root, rcond=None)
        if found[1:].min(initial=0.0) >= 0.0:
            break
    slowness, step_s = (*found.tolist(), 0.0)[:2]
    return slowness, step_s


class Endpoint:
    """The endpoint's core. ``clock`` gives the time."""

    def __init__(self, surroundings: Surroundings, clock: Callable[[], float]) -> None:
        self._call_s, self._token_s, self._clock = surroundings.call_s, surroundings.token_s, clock
        self._read_s = self._written_s = 0.0

    def read(self) -> float:
        """When a call that comes now has been read."""
        self._read_s = max(self._read_s, self._clock()) + self._call_s
        return self._read_s

    def write(self) -> float:
        """When output that an engine hands over now has reached its reader."""
        if not self._token_s:
            return self._clock()
        self._written_s = max(self._written_s, self._read_s, self._clock()) + self._token_s
        return self._written_s
