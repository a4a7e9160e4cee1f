"""Runs of consecutive page ids in a mask: where a new run of pages is placed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PageIds = npt.NDArray[np.int32]
"""Page ids of one layer row or of several ([rows, blocks])."""


class Runs:
    """The runs of True in a mask of pages; taking pages shrinks them. A snapshot: the mask itself is not written."""

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        edges = np.diff(mask.view(np.int8), prepend=np.int8(0), append=np.int8(0))
        self._starts = np.flatnonzero(edges == 1)
        self._lengths = np.flatnonzero(edges == -1) - self._starts

    def take_fitting(self, num_pages: int) -> int | None:
        """First page of the smallest run with ``num_pages`` pages, which are taken; None if no run is long enough."""
        fits = np.flatnonzero(self._lengths >= num_pages)
        if not len(fits):
            return None
        best = fits[np.argmin(self._lengths[fits])]
        start = int(self._starts[best])
        self._starts[best] += num_pages
        self._lengths[best] -= num_pages
        return start

    def longest(self) -> int:
        """Pages in the longest run."""
        return int(self._lengths.max(initial=0))

    def take_scattered(self, num_pages: int) -> PageIds:
        """Up to ``num_pages`` pages, from the ends of the longest runs (the starts are where others may grow)."""
        pieces = [np.empty(0, np.int32)]
        missing = num_pages
        while missing and (longest := self.longest()):
            best = np.argmax(self._lengths)
            length = min(missing, longest)
            stop = int(self._starts[best] + self._lengths[best])
            pieces.append(np.arange(stop - length, stop, dtype=np.int32))
            self._lengths[best] -= length
            missing -= length
        return np.concatenate(pieces)
