"""One encoder layer: attention, then feed-forward, each run by the spans of the staircase that its rows need.

The norm belongs to its sub-layer: a row that runs no unit of a sub-layer passes through unchanged, norm and all. So
dropped sub-layers and left-out depth need no code of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.staircase import Span
from stepwell.models.packed import LayerPlan

RunSpan = Callable[[Tensor, Span], Tensor]
"""``(x_RD, span) -> [R, D]``: what the units of a span add for its rows."""


def run_sublayer(x_TD: Tensor, spans: Sequence[Span], norm: nn.Module, pre_norm: bool, run_span: RunSpan) -> Tensor:
    """One sub-layer with its residual connection and norm; memory of ``x`` may be reused.

    Args:
        x_TD: hidden states, one row a token.
        spans: ascending; the rows of the first contain those of all others.
        norm: of the input of the spans (``pre_norm``), or of the sum.
        pre_norm: ``x + f(norm(x))``, else ``norm(x + f(x))``.
        run_span: see :data:`RunSpan`.
    """
    if not spans:
        return x_TD
    residual = spans[0].take(x_TD)
    inputs = norm(residual) if pre_norm else residual
    total = run_span(inputs, spans[0]).add_(residual)
    for span in spans[1:]:
        where = _rows_within(span, spans[0])
        total = where.add_to(total, run_span(where.take(inputs), span))
    return _put(x_TD, spans[0], total if pre_norm else norm(total))


def _rows_within(span: Span, first: Span) -> Span:
    """``span`` with its rows numbered within those of ``first``."""
    if isinstance(span.rows, int) or isinstance(first.rows, int):
        return span
    return Span(span.start, span.stop, torch.searchsorted(first.rows, span.rows), span.edges)


def _put(x_TD: Tensor, span: Span, y_RD: Tensor) -> Tensor:
    """``x`` with this span's rows replaced by ``y``."""
    if isinstance(span.rows, int) and span.rows == len(x_TD):
        return y_RD
    if isinstance(span.rows, int):
        x_TD[: span.rows] = y_RD
    else:
        x_TD[span.rows] = y_RD
    return x_TD


class FeedForward(nn.Module):
    """Two products with an activation between; a unit is one channel. Exact under slicing: it is element-wise."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.hidden_size, config.ffn_channels)
        self.down = nn.Linear(config.ffn_channels, config.hidden_size)

    @property
    def input_weight(self) -> Tensor:
        """See :class:`~stepwell.models.layers.split_cost.SlicedFFN`."""
        return self.up.weight

    def run_span(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> Tensor:
        """What the channels of ``span`` add for its rows: input [R, D] -> [R, D]."""
        units = (span.start, span.stop)
        h = linear.rows(x_RD, [(self.up, *units)], self.activation)[0]
        return linear.columns(span.void(h), (self.down, *units), self.down.bias if span.start == 0 else None)


class EncoderLayer(nn.Module):
    """One layer, with its norms before (pre-norm) or after (BERT) each sub-layer."""

    def __init__(self, config: EncoderConfig, _index: int, attention: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention, self.ffn = attention, ffn
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, x_TD: Tensor, plan: LayerPlan, context: Any, linear: SliceLinear) -> Tensor:
        """Hidden states [T, D] -> [T, D]; ``context`` is what the family's layers share in this batch."""

        def attend(x_RD: Tensor, span: Span) -> Tensor:
            return self.attention.run_span(x_RD, span, context, linear)  # type: ignore[no-any-return, operator]

        def feed_forward(x_RD: Tensor, span: Span) -> Tensor:
            return self.ffn.run_span(x_RD, span, linear)  # type: ignore[no-any-return, operator]

        x_TD = run_sublayer(x_TD, plan.attention, self.attention_norm, self.pre_norm, attend)
        return run_sublayer(x_TD, plan.ffn, self.ffn_norm, self.pre_norm, feed_forward)
