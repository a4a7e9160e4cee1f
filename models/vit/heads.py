"""What a vision transformer says of an image: classes of the whole, or of every pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.layers.staircase import Span
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.layers import Layer


class ClassifierHead(nn.Module):
    """Linear classification of the tokens that :data:`~stepwell.models.vit.config.Pooling` names."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.pooling, self.num_prefix = config.pooling, config.num_prefix
        size = config.hidden_size * (2 if config.pooling == "cls_and_mean" else 1)
        self.classifier = nn.Linear(size, config.num_labels)
        both = config.pooling == "cls_and_distillation"
        self.distillation = nn.Linear(size, config.num_labels) if both else None

    def forward(self, normed_BTD: Tensor, pooled_BD: Tensor, sizes_BT: Tensor | None) -> Tensor:
        """Logits [B, classes] from the final-normed tokens and the embedding of the whole (:func:`pool`)."""
        if self.pooling == "cls_and_mean":
            mean = mean_patch(normed_BTD, self.num_prefix, sizes_BT)
            pooled_BD = torch.cat([pooled_BD, mean], dim=1)
        logits: Tensor = self.classifier(pooled_BD)
        return logits if self.distillation is None else (logits + self.distillation(normed_BTD[:, 1])) / 2


def mean_patch(x_BTD: Tensor, num_prefix: int, sizes_BT: Tensor | None) -> Tensor:
    """The mean over the patches [B, D]: a token counts as often as it stands for patches."""
    patches = x_BTD[:, num_prefix:]
    if sizes_BT is None:
        return patches.mean(1)
    weights = sizes_BT[:, num_prefix:, None].to(patches.dtype)
    return (patches * weights).sum(1) / weights.sum(1)


class LinearSegmenter(nn.Module):
    """A class for every patch by a linear layer (Strudel et al. 2021, Segmenter, section 3.2: the baseline)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, patches_BND: Tensor, linear: SliceLinear) -> Tensor:
        """Logits [B, patches, classes]."""
        logits: Tensor = self.classifier(patches_BND)
        return logits


class MaskTransformer(nn.Module):
    """Class embeddings run through a few layers with the patches; a patch's logit for a class is the product of their
    normed projections (Strudel et al. 2021, Segmenter, arXiv 2105.05633, section 3.2)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size, classes = config.hidden_size, config.num_labels
        self.num_heads, self.channels, self.num_labels = config.num_heads, config.ffn_channels, classes
        self.proj_dec = nn.Linear(size, size)
        self.class_embeddings = nn.Parameter(torch.zeros(1, classes, size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(size, config.norm_eps)
        self.proj_patch, self.proj_classes = (nn.Linear(size, size, bias=False) for _ in range(2))
        self.mask_norm = nn.LayerNorm(classes)

    def forward(self, patches_BND: Tensor, linear: SliceLinear) -> Tensor:
        """Logits [B, patches, classes]."""
        batch = len(patches_BND)
        x_BTD = torch.cat([self.proj_dec(patches_BND), self.class_embeddings.expand(batch, -1, -1)], dim=1)
        x_TD, heads = x_BTD.flatten(0, 1), [Span(0, self.num_heads, x_BTD[..., 0].numel())]
        channels = [Span(0, self.channels, len(x_TD))]
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x_TD = layer.run_ffn(layer.run_attention(x_TD, heads, _DenseAttend(batch), linear), channels, linear)
        normed = self.norm(x_TD.unflatten(0, (batch, -1)))
        patches, classes = normed.split([patches_BND.shape[1], self.num_labels], dim=1)
        patches = F.normalize(self.proj_patch(patches), dim=-1)
        classes = F.normalize(self.proj_classes(classes), dim=-1)
        logits: Tensor = self.mask_norm(patches @ classes.transpose(1, 2))
        return logits


class _DenseAttend:
    """Attention of equally long sequences."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def __call__(self, span: Span, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor) -> Tensor:
        q, k, v = (t.unflatten(0, (self.num_items, -1)).transpose(1, 2) for t in (q_RHd, k_RHd, v_RHd))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def to_pixels(logits_BNC: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Logits of patches -> of pixels [B, classes, height, width], bilinearly as transformers' post-processing does."""
    plane = logits_BNC.transpose(1, 2).unflatten(2, (grid.height, grid.width))
    size = (grid.height * patch_size, grid.width * patch_size)
    return F.interpolate(plane.float(), size=size, mode="bilinear", align_corners=False)
