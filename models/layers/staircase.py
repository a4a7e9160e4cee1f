"""The staircase of one layer: which rows of a packed batch run which slice of the layer's units.

Sequences run different widths of the same sub-layer (FFN channels, or key-value head groups). Between two neighbouring
widths that occur in the batch lies a slice of units that exactly the sequences at least that wide run. With the
sequences sorted so that wider ones come first, those rows are a prefix of the batch; where a batch mixes ladders whose
order disagrees they are gathered instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = int | Tensor
"""A prefix of that many rows, or an int64 index of rows."""


@dataclass(frozen=True)
class Span:
    """Units ``start:stop`` of a sub-layer, run by ``rows`` of the packed batch.

    ``edges`` is non-empty for a wide span, in which narrower rows run along although units from some position on are
    not theirs: each edge ``(unit, first_row)`` says that units ``unit:stop`` are void for the rows from ``first_row``
    on (numbered within ``rows``). The runner zeroes them, so the result is that of the exact spans.
    """

    start: int
    stop: int
    rows: Rows
    edges: tuple[tuple[int, int], ...] = ()

    @property
    def num_rows(self) -> int:
        return self.rows if isinstance(self.rows, int) else len(self.rows)

    def take(self, x_TD: Tensor) -> Tensor:
        """Rows of ``x`` that run this span: a view for a prefix, a copy otherwise."""
        if isinstance(self.rows, int):
            return x_TD if self.rows == len(x_TD) else x_TD[: self.rows]
        return x_TD[self.rows]

    def add_to(self, x_TD: Tensor, y_RD: Tensor) -> Tensor:
        """``x`` with ``y`` added to this span's rows; in place unless gradients are needed."""
        if isinstance(self.rows, Tensor):
            return x_TD.index_add(0, self.rows, y_RD)
        if self.rows == len(x_TD):
            return x_TD + y_RD if torch.is_grad_enabled() else x_TD.add_(y_RD)
        if torch.is_grad_enabled():
            return torch.cat([x_TD[: self.rows] + y_RD, x_TD[self.rows :]])
        x_TD[: self.rows] += y_RD
        return x_TD

    def void(self, h_RU: Tensor) -> Tensor:
        """Zero the units of ``h`` [rows, units of this span] that are not the row's own."""
        for unit, first_row in self.edges:
            h_RU[first_row:, unit - self.start :] = 0
        return h_RU


WideRule = Callable[[int, int, int, int], bool]
"""``(narrow_units, narrow_rows, extra_units, extra_rows) -> bool``: run both slices as one for all rows?"""


def plan_spans(widths: Sequence[int], num_rows: Sequence[int], run_wide: WideRule | None = None) -> tuple[Span, ...]:
    """Spans of one sub-layer for runs of consecutive rows.

    Args:
        widths: units that run i uses (a prefix of that many); 0 = none.
        num_rows: rows of run i, > 0.
        run_wide: decides, by measured cost, where a split costs more than it saves. None = always exact spans.

    Returns spans ascending in ``start``; together they cover each run's prefix exactly once.
    """
    steps = sorted({w for w in widths if w})
    if not steps:
        return ()
    if all(widths[i] >= widths[i + 1] for i in range(len(widths) - 1)):
        return _prefix_spans(widths, num_rows, steps, run_wide)
    return _gathered_spans(widths, num_rows, steps)


def _prefix_spans(
    widths: Sequence[int], num_rows: Sequence[int], steps: list[int], run_wide: WideRule | None
) -> tuple[Span, ...]:
    spans: list[Span] = []
    start = 0
    for stop in steps:
        rows = sum(n for w, n in zip(widths, num_rows, strict=True) if w >= stop)
        last = spans[-1] if spans else None
        if last and run_wide and run_wide(last.stop - last.start, last.num_rows, stop - start, rows):
            spans[-1] = Span(last.start, stop, last.rows, (*last.edges, (start, rows)))
        else:
            spans.append(Span(start, stop, rows))
        start = stop
    return tuple(spans)


def _gathered_spans(widths: Sequence[int], num_rows: Sequence[int], steps: list[int]) -> tuple[Span, ...]:
    width_of_row = torch.repeat_interleave(torch.tensor(widths), torch.tensor(num_rows))
    starts = [0, *steps[:-1]]
    return tuple(
        Span(start, stop, torch.nonzero(width_of_row >= stop).squeeze(1))
        for start, stop in zip(starts, steps, strict=True)
    )
