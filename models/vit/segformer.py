"""SegFormer: a hierarchical encoder whose attention reads fewer keys than there are queries, and an all-linear decoder.

Images that are alike in size and sub-network run together; others after them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.fields import ConfigError
from stepwell.models.kernels.activations import ACTIVATIONS
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.ladder import SubNetwork
from stepwell.models.one_shot import Item, ItemOutput
from stepwell.models.vit.fixed_norm import FixedBatchNorm
from stepwell.models.vit.segformer_config import SegformerConfig, StageConfig


class Segformer(nn.Module):
    """Stages, each at half the resolution of the one before, and the decoder over all of them."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(_Stage(stage, config.activation) for stage in config.stages)
        self.head = _Decoder(config)
        self.linear = SliceLinear()

    @property
    def dtype(self) -> torch.dtype:
        return self.head.classifier.weight.dtype

    def prepare_serving(self, packed_bytes: int, ffn_widths: Collection[int] = ()) -> Segformer:
        """Freeze the weights and allow ``packed_bytes`` of packed copies of them."""
        self.requires_grad_(False).eval()
        self.linear = SliceLinear(packed_bytes)
        return self

    @torch.inference_mode()
    def run(self, items: Sequence[Item], wanted: Collection[str]) -> list[ItemOutput]:
        """See :class:`~stepwell.models.one_shot.OneShotModel`. Raises ConfigError."""
        if unknown := sorted(set(wanted) - self.config.outputs.keys()):
            raise ConfigError(f"output: {unknown[0]!r} is not one of {', '.join(self.config.outputs)}")
        groups: dict[tuple[SubNetwork, tuple[int, ...]], list[int]] = {}
        for index, item in enumerate(items):
            if item.reduction is not None and item.reduction.budget < 1.0:
                raise ConfigError(f"reducer: {item.reduction.reducer!r}: this model reduces no tokens; ask for none")
            groups.setdefault((item.subnet, tuple(item.data.shape)), []).append(index)
        outputs: dict[int, ItemOutput] = {}
        for (subnet, shape), indices in groups.items():
            count = self.config.num_tokens(shape)
            logits = self(torch.stack([items[i].data for i in indices]), subnet)
            for place, index in enumerate(indices):
                outputs[index] = ItemOutput({"logits": logits[place].float()} if wanted else {}, count)
        return [outputs[index] for index in range(len(items))]

    def forward(self, pixels_BCHW: Tensor, subnet: SubNetwork) -> Tensor:
        """Logits [B, classes, H, W] of images of one size, brought to their size bilinearly."""
        x, planes, first = pixels_BCHW.to(self.dtype), [], 0
        for stage in self.stages:
            assert isinstance(stage, _Stage)
            last = first + len(stage.layers)
            runs = list(zip(subnet.kv_groups[first:last], subnet.ffn_channels[first:last], strict=True))
            x = stage(x, runs, self.linear)
            planes.append(x)
            first = last
        logits: Tensor = self.head(planes)
        return F.interpolate(logits.float(), size=pixels_BCHW.shape[2:], mode="bilinear", align_corners=False)


class _Stage(nn.Module):
    def __init__(self, stage: StageConfig, activation: str) -> None:
        super().__init__()
        size, patch = stage.hidden_size, stage.patch_size
        self.projection = nn.Conv2d(stage.in_size, size, patch, stage.stride, patch // 2)
        self.embedding_norm = nn.LayerNorm(size)
        self.layers = nn.ModuleList(_Layer(stage, activation) for _ in range(stage.depth))
        self.norm = nn.LayerNorm(size)

    def forward(self, x_BCHW: Tensor, runs: Sequence[tuple[int, int]], linear: SliceLinear) -> Tensor:
        plane = self.projection(x_BCHW)
        x_BHWD = self.embedding_norm(plane.permute(0, 2, 3, 1))
        for layer, (attends, feeds) in zip(self.layers, runs, strict=True):
            assert isinstance(layer, _Layer)
            if attends:
                x_BHWD = x_BHWD + layer.attention(layer.norm1(x_BHWD), linear)
            if feeds:
                x_BHWD = x_BHWD + layer.mlp(layer.norm2(x_BHWD), linear)
        normed: Tensor = self.norm(x_BHWD)
        return normed.permute(0, 3, 1, 2)


class _Layer(nn.Module):
    def __init__(self, stage: StageConfig, activation: str) -> None:
        super().__init__()
        self.attention, self.mlp = _Attention(stage), _MixFFN(stage, activation)
        self.norm1, self.norm2 = nn.LayerNorm(stage.hidden_size), nn.LayerNorm(stage.hidden_size)


class _Attention(nn.Module):
    """Queries of every token over keys and values of a plane that a strided convolution has reduced (section 3.1)."""

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        size, ratio = stage.hidden_size, stage.reduction
        self.num_heads = stage.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size) for _ in range(4))
        self.reduction = nn.Conv2d(size, size, ratio, ratio) if ratio > 1 else None
        self.reduction_norm = nn.LayerNorm(size) if ratio > 1 else None

    def forward(self, x_BHWD: Tensor, linear: SliceLinear) -> Tensor:
        source = x_BHWD
        if self.reduction is not None and self.reduction_norm is not None:
            source = self.reduction_norm(self.reduction(x_BHWD.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        q = self._heads(x_BHWD, self.q_proj, linear)
        k, v = (self._heads(source, proj, linear) for proj in (self.k_proj, self.v_proj))
        mixed_RD = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
        return _apply(mixed_RD, self.o_proj, linear).view(x_BHWD.shape)

    def _heads(self, x_BHWD: Tensor, proj: nn.Linear, linear: SliceLinear) -> Tensor:
        """[B, heads, tokens, d]."""
        out_RD = _apply(x_BHWD.flatten(0, 2), proj, linear)
        return out_RD.view(len(x_BHWD), -1, self.num_heads, out_RD.shape[1] // self.num_heads).transpose(1, 2)


class _MixFFN(nn.Module):
    """A 3 x 3 depthwise convolution between the two products says where a token is (section 3.1)."""

    def __init__(self, stage: StageConfig, activation: str) -> None:
        super().__init__()
        channels = stage.ffn_channels
        self.activation = ACTIVATIONS[activation]
        self.fc1, self.fc2 = nn.Linear(stage.hidden_size, channels), nn.Linear(channels, stage.hidden_size)
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x_BHWD: Tensor, linear: SliceLinear) -> Tensor:
        hidden = _apply(x_BHWD.flatten(0, 2), self.fc1, linear).view(*x_BHWD.shape[:3], -1)
        mixed = self.dwconv(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return _apply(self.activation.apply(mixed).flatten(0, 2), self.fc2, linear).view(x_BHWD.shape)


class _Decoder(nn.Module):
    """Every stage brought to one width and the finest plane, fused, classified (section 3.2)."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        size = config.decoder_size
        self.projections = nn.ModuleList(nn.Linear(stage.hidden_size, size) for stage in config.stages)
        self.fuse = nn.Conv2d(size * len(config.stages), size, 1, bias=False)
        self.norm = FixedBatchNorm(size)
        self.classifier = nn.Conv2d(size, config.num_labels, 1)

    def forward(self, planes: Sequence[Tensor]) -> Tensor:
        finest = planes[0].shape[2:]
        parts = []
        for plane_BCHW, projection in zip(planes, self.projections, strict=True):
            part = projection(plane_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            parts.append(F.interpolate(part, size=finest, mode="bilinear", align_corners=False))
        # The coarsest comes first, as in the authors' code.
        fused = F.relu(self.norm(self.fuse(torch.cat(parts[::-1], dim=1))))
        logits: Tensor = self.classifier(fused)
        return logits


def _apply(x_RD: Tensor, proj: nn.Linear, linear: SliceLinear) -> Tensor:
    return linear.rows(x_RD, [(proj, 0, proj.out_features)])[0]
