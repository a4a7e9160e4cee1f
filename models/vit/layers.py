"""The two sub-layers of a vision transformer's layer, each run by the spans of the staircase that its rows need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.staircase import Span
from stepwell.models.vit.config import ViTConfig


class Attend(Protocol):
    """Attention of each item's tokens over each other: queries, keys and values [R, heads, d] of the heads
    ``span.start:stop`` for the rows of ``span`` -> [R, heads * d]."""

    def __call__(self, span: Span, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor) -> Tensor: ...


class Attention(nn.Module):
    """Multi-head attention; a unit is a head."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size, bias=config.qkv_bias) for _ in range(3))
        self.o_proj = nn.Linear(size, size)

    def run_span(self, x_RD: Tensor, span: Span, attend: Attend, linear: SliceLinear) -> Tensor:
        """What the heads of ``span`` add for its rows: normed input [R, D] -> [R, D]."""
        start, stop = span.start * self.head_dim, span.stop * self.head_dim
        parts = linear.rows(x_RD, [(proj, start, stop) for proj in (self.q_proj, self.k_proj, self.v_proj)])
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        bias = self.o_proj.bias if span.start == 0 else None
        return linear.columns(attend(span, q, k, v), (self.o_proj, start, stop), bias)


class FeedForward(nn.Module):
    """Feed-forward network, gated (SwiGLU) or not; a unit is one channel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = nn.Linear(config.hidden_size, config.ffn_channels) if config.gated_ffn else None
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_channels)
        self.fc2 = nn.Linear(config.ffn_channels, config.hidden_size)

    def run_span(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> Tensor:
        """What the channels of ``span`` add for its rows: normed input [R, D] -> [R, D]."""
        bounds = (span.start, span.stop)
        (hidden,) = linear.rows(x_RD, [(self.gate or self.fc1, *bounds)], self.activation)
        if self.gate is not None:
            hidden = hidden * linear.rows(x_RD, [(self.fc1, *bounds)])[0]
        return linear.columns(hidden, (self.fc2, *bounds), self.fc2.bias if span.start == 0 else None)


class Layer(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each optionally scaled by channel (LayerScale, Touvron et al.
    2021). A row that runs no unit of a sub-layer passes through unchanged."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(config), FeedForward(config)
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden_size, config.norm_eps) for _ in range(2))
        scales = [nn.Parameter(torch.ones(config.hidden_size)) if config.layer_scale else None for _ in range(2)]
        self.scale1, self.scale2 = scales

    def run_attention(self, x_TD: Tensor, spans: Sequence[Span], attend: Attend, linear: SliceLinear) -> Tensor:
        """The residual stream [T, D] with the attention's output added."""
        normed = _normed(x_TD, self.norm1, spans)
        for span in spans:
            out = self.attention.run_span(span.take(normed), span, attend, linear)
            x_TD = span.add_to(x_TD, out if self.scale1 is None else out * self.scale1)
        return x_TD

    def run_ffn(self, x_TD: Tensor, spans: Sequence[Span], linear: SliceLinear) -> Tensor:
        """The residual stream [T, D] with the feed-forward network's output added."""
        normed = _normed(x_TD, self.norm2, spans)
        for span in spans:
            out = self.mlp.run_span(span.take(normed), span, linear)
            x_TD = span.add_to(x_TD, out if self.scale2 is None else out * self.scale2)
        return x_TD


def _normed(x_TD: Tensor, norm: nn.LayerNorm, spans: Sequence[Span]) -> Tensor:
    """Spans shrink as units go up: where they are prefixes, the first has all rows that any needs."""
    if not spans:
        return x_TD
    normed: Tensor = norm(spans[0].take(x_TD) if isinstance(spans[0].rows, int) else x_TD)
    return normed
