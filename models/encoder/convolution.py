"""A convolution over neighbouring tokens beside the first layer (DeBERTa v2 xlarge), of packed texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.encoder.batch import TextBatch
from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.disentangled import DisentangledBatch, relative_positions
from stepwell.models.encoder.layer import EncoderLayer
from stepwell.models.kernels.activations import ACTIVATIONS
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.packed import LayerPlan


class ConvolvedLayer(EncoderLayer):
    """The first layer: what a convolution makes of the embeddings is added to the layer's output, and normed.

    Every row that runs any layer at all runs it; one that runs none keeps its embedding.
    """

    def __init__(self, config: EncoderConfig, index: int, attention: nn.Module, ffn: nn.Module) -> None:
        super().__init__(config, index, attention, ffn)
        spec = relative_positions(config).convolution
        assert spec is not None
        size = config.hidden_size
        self.activation = ACTIVATIONS[spec.activation]
        self.convolution = nn.Conv1d(size, size, spec.kernel_size, groups=spec.num_groups)
        self.convolution_norm = nn.LayerNorm(size, config.norm_eps)

    def forward(self, x_TD: Tensor, plan: LayerPlan, context: DisentangledBatch, linear: SliceLinear) -> Tensor:
        """See :class:`~stepwell.models.encoder.layer.EncoderLayer`."""
        lengths = _running(context.batch)
        num_rows = sum(lengths)
        # Before the layer: it may reuse the memory of its input.
        added = self.activation.apply(convolve(x_TD[:num_rows], lengths, self.convolution))
        x_TD = super().forward(x_TD, plan, context, linear)
        normed = self.convolution_norm(x_TD[:num_rows] + added)
        return normed if num_rows == len(x_TD) else torch.cat([normed, x_TD[num_rows:]])


def convolve(x_TD: Tensor, lengths: list[int], convolution: nn.Conv1d) -> Tensor:
    """The convolution [T, D] of texts that lie end to end, each as if between zeros: one call over all of them, with
    as many rows of zeros between two texts as the kernel reaches."""
    reach = convolution.kernel_size[0] // 2
    text_of_row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    places = torch.arange(len(x_TD)) + reach * text_of_row
    spaced = x_TD.new_zeros(len(x_TD) + reach * (len(lengths) + 1), x_TD.shape[1])
    spaced[places + reach] = x_TD
    out_1DT = F.conv1d(spaced.t()[None], convolution.weight, convolution.bias, groups=convolution.groups)
    return out_1DT[0].t()[places]


def _running(batch: TextBatch) -> list[int]:
    """Lengths of the texts that run any layer, and of the fillers if they do. Texts without a unit are last."""
    lengths = [length for length, subnet in zip(batch.lengths, batch.subnets, strict=True) if subnet.depth]
    fillers = len(batch.token_ids) - batch.cu_seqlens[-1]
    return [*lengths, fillers] if fillers and batch.subnets[-1].depth else lengths
