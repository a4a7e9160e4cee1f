"""Llama-family decoder over packed batches of sequences that run different sub-networks.

Parameters carry Hugging Face's names, so checkpoints load as they are. One set of layers serves training (dense
batches, :meth:`Decoder.forward_dense`) and serving (packed batches over the paged cache, :meth:`Decoder.forward`);
they differ only in the :class:`~stepwell.models.layers.blocks.Attend` they pass in.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.config import DecoderConfig
from stepwell.models.kernels.attention import DenseAttention, PagedAttention
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.kernels.scratch import Scratch
from stepwell.models.ladder import SubNetwork
from stepwell.models.layers.blocks import Attend, DecoderLayer, RMSNorm
from stepwell.models.layers.rotary import RotaryTable
from stepwell.models.layers.split_cost import MeasuredCost
from stepwell.models.layers.staircase import WideRule
from stepwell.models.packed import LayerPlan, PackedBatch, plan_layers


class Decoder(nn.Module):
    """Embedding, layers, shared final norm and head: every depth level leaves through the same norm and head.

    (Sorted LLaMA, arXiv 2309.08968: ``logits_n = head(norm(h_n))``.)
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        self.lm_head = None if config.tied_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = RotaryTable(config)
        self.linear = SliceLinear()
        self.scratch = Scratch()
        self.run_wide: WideRule | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @property
    def head(self) -> nn.Linear | nn.Embedding:
        return self.model.embed_tokens if self.lm_head is None else self.lm_head

    def prepare_serving(self, packed_bytes: int, ffn_widths: Collection[int] = ()) -> Decoder:
        """Freeze the weights, allow ``packed_bytes`` of packed copies of their slices, and measure split costs.

        Args:
            packed_bytes: memory bound of packed copies; 0 = none.
            ffn_widths: FFN widths that levels use; with two or more, the cost of products is measured (well under a
                second), to run narrow and wide rows as one where a split costs more than it saves.
        """
        self.requires_grad_(False).eval()
        self.linear = SliceLinear(packed_bytes)
        self.run_wide = None
        widths = sorted(set(ffn_widths) - {0})
        if len(widths) > 1:
            mlps = [layer.mlp for layer in self._layers()]
            self.run_wide = MeasuredCost.measure(mlps, self.linear, (widths[0], widths[-1])).prefers_wide
        return self

    def rebuild_tables(self) -> None:
        """Compute what follows from the configuration (after building on the meta device)."""
        self.rotary = RotaryTable(self.config)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of final-normed hidden states [..., D]."""
        return F.linear(hidden, self.head.weight)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Run one packed batch; keys and values go to the sequences' cache pages.

        Returns logits [outputs, vocabulary], one row per sequence with ``wants_logits``, in the caller's order.
        """
        return self.forward_keeping(batch)[0]

    @torch.inference_mode()
    def forward_keeping(self, batch: PackedBatch) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`forward`, and the exit hidden states [tokens, D] of each sequence with ``keep_exit``: its residual
        stream after the last layer it ran, in the model's dtype, from which the layers above can run later."""
        plans = plan_layers(batch.subnets, batch.query_lens, self.run_wide)
        attend = PagedAttention(self.config, batch, self.scratch)
        x = self.model.embed_tokens(batch.token_ids)
        for rows, hidden in batch.joining:
            x[rows] = hidden
        x = self._run_layers(x, plans, self.rotary.at(batch.positions, x.dtype), attend)
        hidden = self.model.norm(x[batch.output_rows])
        logits = self.linear.rows(hidden, [(self.head, 0, self.config.vocab_size)])[0]
        return logits, [x[rows].clone() for rows in batch.exit_rows]  # copies: views would keep the whole batch

    def forward_dense(self, token_ids_BT: Tensor, subnet: SubNetwork, exit_depths: Sequence[int] = ()) -> list[Tensor]:
        """Differentiable run of equally long sequences at one sub-network, without a cache.

        Args:
            token_ids_BT: int64 [B, T].
            exit_depths: ascending depths below ``subnet.depth`` whose hidden states are wanted as well.

        Returns the final-normed hidden states [B, T, D] at each exit depth and, last, at the sub-network's own.
        """
        batch, length = token_ids_BT.shape
        plans = plan_layers([subnet], [batch * length])
        positions = torch.arange(length).repeat(batch)
        x = self.model.embed_tokens(token_ids_BT.reshape(-1))
        rotary = self.rotary.at(positions, x.dtype)
        attend = DenseAttention(self.config, batch)
        states, done = [], 0
        for depth in (*exit_depths, len(plans)):
            x = self._run_layers(x, plans[done:depth], rotary, attend, first=done)
            states.append(self.model.norm(x).view(batch, length, -1))
            done = depth
        return states

    def _layers(self) -> list[DecoderLayer]:
        return list(self.model.layers)  # type: ignore[arg-type]

    def _run_layers(
        self, x_TD: Tensor, plans: Sequence[LayerPlan], rotary: tuple[Tensor, Tensor], attend: Attend, first: int = 0
    ) -> Tensor:
        for layer, plan in zip(self._layers()[first:], plans, strict=False):
            x_TD = layer.self_attn(x_TD, layer.input_layernorm, plan.attention, rotary, attend, self.linear)
            x_TD = layer.mlp(x_TD, layer.post_attention_layernorm, plan.ffn, self.linear)
        return x_TD


class _Body(nn.Module):
    """Everything below the head, under Hugging Face's prefix ``model.``."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_eps)
