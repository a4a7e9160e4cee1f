"""A feed-forward network whose channels have a gate (GeGLU: Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.kernels.activations import ACTIVATIONS
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.staircase import Span


class GatedFeedForward(nn.Module):
    """``down(activation(up(x)) * gate(x))``; a unit is one channel of both. Exact under slicing: it is element-wise."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.channels, self.activation = config.ffn_channels, ACTIVATIONS[config.activation]
        self.up_gate = nn.Linear(config.hidden_size, 2 * self.channels, bias=config.ffn_bias)
        """All channels, then the gate of each."""
        self.down = nn.Linear(self.channels, config.hidden_size, bias=config.ffn_bias)

    @property
    def input_weight(self) -> Tensor:
        """See :class:`~stepwell.models.layers.split_cost.SlicedFFN`."""
        return self.up_gate.weight[: self.channels]

    def run_span(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> Tensor:
        """What the channels of ``span`` add for its rows: input [R, D] -> [R, D]."""
        units = (span.start, span.stop)
        of_gate = (self.channels + span.start, self.channels + span.stop)
        up, gate = linear.rows(x_RD, [(self.up_gate, *units), (self.up_gate, *of_gate)])
        h = span.void(self.activation.apply(up) * gate)
        return linear.columns(h, (self.down, *units), self.down.bias if span.start == 0 else None)
