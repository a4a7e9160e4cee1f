"""Where in the pool consecutive page ids can be had."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PageIds = npt.NDArray[np.int32]
"""Page ids of one layer row or of several ([rows, blocks])."""
Mask = npt.NDArray[np.bool_]
"""One flag a page of the pool."""

_UNUSABLE = 1 << 40
"""Costs more than all usable pages together."""


def cheapest_window(usable: Mask, cost: npt.NDArray[np.int64], length: int) -> int | None:
    """First of the ``length`` consecutive usable pages of the least total ``cost``; None if there are none."""
    if length > len(usable):
        return None
    total = np.zeros(len(usable) + 1, np.int64)
    np.cumsum(np.where(usable, cost, _UNUSABLE), out=total[1:])
    window = total[length:] - total[: len(total) - length]
    best = int(window.argmin())
    return best if window[best] < _UNUSABLE else None


def first_run(usable: Mask, length: int) -> int | None:
    """First of ``length`` consecutive usable pages; None if there are none."""
    start = usable.tobytes().find(b"\x01" * length)
    return start if start >= 0 else None


def longest_run(usable: Mask) -> tuple[int, int]:
    """First page and length of the longest run of usable pages; length 0 if there is none."""
    starts, lengths = _runs(usable)
    if not len(starts):
        return 0, 0
    best = np.argmax(lengths)
    return int(starts[best]), int(lengths[best])


def scattered_pages(usable: Mask, num_pages: int) -> PageIds:
    """Up to ``num_pages`` usable pages, from the ends of the longest runs: at their starts others may want to grow."""
    starts, lengths = _runs(usable)
    pieces = [np.empty(0, np.int32)]
    for run in np.argsort(-lengths, kind="stable"):
        length = min(num_pages, int(lengths[run]))
        stop = int(starts[run] + lengths[run])
        pieces.append(np.arange(stop - length, stop, dtype=np.int32))
        num_pages -= length
        if not num_pages:
            break
    return np.concatenate(pieces)


def _runs(mask: Mask) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    edges = np.diff(mask.view(np.int8), prepend=np.int8(0), append=np.int8(0))
    starts = np.flatnonzero(edges == 1)
    return starts, np.flatnonzero(edges == -1) - starts
