"""The two sub-layers of a decoder layer, each run by the spans of the staircase that its rows need.

Both add their result to the residual stream row by row, so a sequence that runs no unit of a sub-layer passes through
unchanged: dropped sub-layers and left-out depth need no code of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.config import DecoderConfig
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.rotary import rotate
from stepwell.models.layers.staircase import Span


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attend(Protocol):
    """Causal attention of the rows of one span over the keys and values of their sequences.

    Takes queries [R, heads, d], and keys and values [R, groups, d] of the key-value head groups ``span.start:stop``
    of ``layer`` for the rows of ``span``, remembers the keys and values where the sequences' cache is, and returns
    [R, heads * d].
    """

    def __call__(self, layer: int, span: Span, q_RHd: Tensor, k_RGd: Tensor, v_RGd: Tensor) -> Tensor: ...


class Attention(nn.Module):
    """Grouped-query attention; a unit is a key-value head with its query heads."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.group_heads = layer, config.head_dim, config.group_heads
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.o_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else None

    def forward(
        self,
        residual_TD: Tensor,
        norm: RMSNorm,
        spans: Sequence[Span],
        rotary: tuple[Tensor, Tensor],
        attend: Attend,
        linear: SliceLinear,
    ) -> Tensor:
        """The residual stream with this sub-layer's output added, [T, D]."""
        if not spans:
            return residual_TD
        normed = norm(spans[0].take(residual_TD)) if isinstance(spans[0].rows, int) else norm(residual_TD)
        for span in spans:
            q, k, v = self._project(span.take(normed), span, linear)
            cos, sin = (span.take(table) for table in rotary)
            mixed = attend(self.layer, span, rotate(q, cos, sin), rotate(k, cos, sin), v)
            size = self.group_heads * self.head_dim
            out = linear.columns(mixed, (self.o_proj, span.start * size, span.stop * size))
            if self.o_proj.bias is not None and span.start == 0:
                out = out + self.o_proj.bias
            residual_TD = span.add_to(residual_TD, out)
        return residual_TD

    def _project(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> tuple[Tensor, Tensor, Tensor]:
        q_size, kv_size = self.group_heads * self.head_dim, self.head_dim
        q, k, v = linear.rows(
            x_RD,
            [
                (self.q_proj, span.start * q_size, span.stop * q_size),
                (self.k_proj, span.start * kv_size, span.stop * kv_size),
                (self.v_proj, span.start * kv_size, span.stop * kv_size),
            ],
        )
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class FeedForward(nn.Module):
    """SwiGLU feed-forward network; a unit is one channel. Exact under slicing: the activation is element-wise."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_channels, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_channels, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.ffn_channels, config.hidden_size, bias=config.mlp_bias)

    @property
    def input_weight(self) -> Tensor:
        """See :class:`~stepwell.models.layers.split_cost.SlicedFFN`."""
        return self.gate_proj.weight

    def forward(self, residual_TD: Tensor, norm: RMSNorm, spans: Sequence[Span], linear: SliceLinear) -> Tensor:
        """The residual stream with this sub-layer's output added, [T, D]."""
        if not spans:
            return residual_TD
        normed = norm(spans[0].take(residual_TD)) if isinstance(spans[0].rows, int) else norm(residual_TD)
        for span in spans:
            residual_TD = span.add_to(residual_TD, self.run_span(span.take(normed), span, linear))
        return residual_TD

    def run_span(self, x_RD: Tensor, span: Span, linear: SliceLinear) -> Tensor:
        """What the channels of ``span`` add for its rows: normed input [R, D] -> [R, D]."""
        bounds = (span.start, span.stop)
        gate, up = linear.rows(x_RD, [(self.gate_proj, *bounds), (self.up_proj, *bounds)])
        out = linear.columns(span.void(F.silu(gate) * up), (self.down_proj, *bounds))
        if self.down_proj.bias is not None and span.start == 0:
            out = out + self.down_proj.bias
        return out


class DecoderLayer(nn.Module):
    """One pre-norm layer: attention, then feed-forward."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_eps)
