"""The encoder: texts of any lengths at sub-networks of their own, in one packed batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from stepwell.models.encoder.batch import TextBatch
from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.families import family_of
from stepwell.models.encoder.heads import Head
from stepwell.models.encoder.projection import Projection
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.split_cost import MeasuredCost, SlicedFFN
from stepwell.models.layers.staircase import WideRule
from stepwell.models.one_shot import Item, ItemOutput
from stepwell.models.packed import plan_layers

SMALL_LAYERS = 4_000_000
"""Weights that a row meets in all layers, up to which batches are filled to a number of rows that oneDNN has code for.
Beyond, the fillers cost more than generating it (about 1 ms a shape, four shapes a batch)."""


class Encoder(nn.Module):
    """Embeddings, layers and, if the checkpoint has one, a head; the parts are those of the configuration's family.

    Fulfils :class:`~stepwell.models.one_shot.OneShotModel`. ``Item.data`` are token ids.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        family = family_of(config.model_type)
        self.config = config
        self.embeddings = family.embeddings(config)
        self.context = family.context(config)
        self.layers = nn.ModuleList(
            family.layer(config, index, family.attention(config, index), family.feed_forward(config))
            for index in range(config.num_layer_modules)
        )
        self.final_norm: nn.LayerNorm | None = None
        if config.pre_norm:
            self.final_norm = nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.norm_bias)
        self.head: Head | None = None
        if config.head is not None:
            self.head = Head(config.head, config.hidden_size, config.norm_eps, self._word_table)
        self.projections = nn.ModuleList(Projection(projection) for projection in config.projections)
        self.linear = SliceLinear()
        self.run_wide: WideRule | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self._word_table.weight.dtype

    @property
    def _layer_weights(self) -> int:
        sizes = [sum(weight.numel() for weight in layer.parameters()) for layer in self.layers]
        return sum(sizes[self._module_of(index)] for index in range(self.config.num_layers))

    @property
    def _word_table(self) -> nn.Embedding:
        return self.embeddings.word  # type: ignore[return-value]

    def prepare_serving(self, packed_bytes: int, ffn_widths: Collection[int] = ()) -> Encoder:
        """See :class:`~stepwell.models.decoder.Decoder`."""
        self.requires_grad_(False).eval()
        self.linear = SliceLinear(packed_bytes, pads_rows=self._layer_weights <= SMALL_LAYERS)
        self.run_wide = None
        widths = sorted(set(ffn_widths) - {0})
        if len(widths) > 1:
            ffns: list[SlicedFFN] = [layer.ffn for layer in self.layers]  # type: ignore[misc]
            self.run_wide = MeasuredCost.measure(ffns, self.linear, (widths[0], widths[-1])).prefers_wide
        return self

    @torch.inference_mode()
    def run(self, items: Sequence[Item], wanted: Collection[str]) -> list[ItemOutput]:
        """See :class:`~stepwell.models.one_shot.OneShotModel`."""
        assert all(item.reduction is None for item in items), "no encoder reduces tokens"
        batch = TextBatch.pack(items, padded=self.linear.budget_bytes > 0 and self.linear.pads_rows)
        x = self.hidden_states(batch)
        rows_of = {name: self._output(name, x, batch) for name in wanted}
        outputs: dict[int, ItemOutput] = {}
        for index, place in enumerate(batch.order):
            tensors = {name: rows[index] for name, rows in rows_of.items()}
            outputs[place] = ItemOutput(tensors, batch.lengths[index])
        return [outputs[place] for place in range(len(items))]

    def hidden_states(self, batch: TextBatch) -> Tensor:
        """The last hidden state of every row, [T, D]."""
        x: Tensor = self.embeddings(batch)
        context = self.context(batch)
        for index, plan in enumerate(plan_layers(batch.subnets, batch.num_rows, self.run_wide)):
            x = self.layers[self._module_of(index)](x, plan, context, self.linear)
        return x if self.final_norm is None else self.final_norm(x)

    def _module_of(self, layer: int) -> int:
        return self.config.layer_modules[layer] if self.config.layer_modules else layer

    def _output(self, name: str, x_TD: Tensor, batch: TextBatch) -> Sequence[Tensor]:
        """One output of every text, float32, in the order of the batch."""
        if name == "embedding":
            return self.config.pooling(x_TD, batch, self.projections).unbind()
        if name == "last_hidden_state":
            x_TD = x_TD.float()
            return [x_TD[rows] for rows in batch.rows]
        assert name == "logits", f"no encoder has an output {name!r}"
        assert self.head is not None, "logits without a head"
        logits = self.head(x_TD, batch, self.linear).float()
        return logits.unbind() if self.head.config.kind == "sequence" else [logits[rows] for rows in batch.rows]
