"""DPT's neck and head: tokens of several layers become planes of several resolutions, are fused from the coarsest to
the finest, and classified (Ranftl et al. 2021, arXiv 2103.13413, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.kernels.activations import ACTIVATIONS
from stepwell.models.vit.dpt_config import DptConfig, TapConfig
from stepwell.models.vit.fixed_norm import FixedBatchNorm
from stepwell.models.vit.grid import Grid


class Neck(nn.Module):
    """Reassemble, then fuse."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.reassemble = nn.ModuleList(_Reassemble(config, tap) for tap in config.taps)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(tap.channels, config.fusion_size, 3, padding=1, bias=False) for tap in config.taps
        )
        self.fusion = nn.ModuleList(_Fusion(config, is_first=index == 0) for index in range(len(config.taps)))

    def forward(self, taps: Sequence[Tensor], grid: Grid) -> list[Tensor]:
        """Tokens [B, tokens, D] of each tap, lowest layer first -> fused planes [B, fusion, H, W], coarsest first."""
        planes = [
            convolution(reassemble(x_BTD, grid))
            for x_BTD, reassemble, convolution in zip(taps, self.reassemble, self.convolutions, strict=True)
        ]
        fused: list[Tensor] = []
        for plane, fuse in zip(planes[::-1], self.fusion, strict=True):
            fused.append(fuse(plane, fused[-1] if fused else None))
        return fused


class _Reassemble(nn.Module):
    """Tokens -> a plane of the tap's channels and scale (section 3.1)."""

    def __init__(self, config: DptConfig, tap: TapConfig) -> None:
        super().__init__()
        size = config.backbone.hidden_size
        self.readout_kind = config.readout
        self.activation = ACTIVATIONS[config.backbone.activation]
        self.readout = nn.Linear(2 * size, size) if config.readout == "project" else None
        self.projection = nn.Conv2d(size, tap.channels, 1)
        self.resize: nn.Module = nn.Identity()
        if tap.scale > 1:
            self.resize = nn.ConvTranspose2d(tap.channels, tap.channels, tap.scale, tap.scale)
        elif tap.scale < 0:
            self.resize = nn.Conv2d(tap.channels, tap.channels, 3, -tap.scale, padding=1)

    def forward(self, x_BTD: Tensor, grid: Grid) -> Tensor:
        whole, patches = x_BTD[:, :1], x_BTD[:, grid.num_prefix :]
        if self.readout is not None:
            both = torch.cat([patches, whole.expand_as(patches)], dim=2)
            patches = self.activation.apply(self.readout(both))
        elif self.readout_kind == "add":
            patches = patches + whole
        plane: Tensor = self.resize(self.projection(patches.transpose(1, 2).unflatten(2, (grid.height, grid.width))))
        return plane


class _Fusion(nn.Module):
    """Adds a plane to what the coarser ones gave, and doubles the resolution."""

    def __init__(self, config: DptConfig, is_first: bool) -> None:
        super().__init__()
        self.residual_layer1 = None if is_first else _Residual(config)
        self.residual_layer2 = _Residual(config)
        self.projection = nn.Conv2d(config.fusion_size, config.fusion_size, 1)

    def forward(self, plane: Tensor, coarser: Tensor | None) -> Tensor:
        if coarser is not None:
            assert self.residual_layer1 is not None
            if plane.shape != coarser.shape:
                plane = F.interpolate(plane, size=coarser.shape[2:], mode="bilinear", align_corners=False)
            plane = coarser + self.residual_layer1(plane)
        fused = F.interpolate(self.residual_layer2(plane), scale_factor=2, mode="bilinear", align_corners=True)
        projected: Tensor = self.projection(fused)
        return projected


class _Residual(nn.Module):
    """Two convolutions, each after its activation, beside the identity."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        size = config.fusion_size
        self.convolution1, self.convolution2 = (
            nn.Conv2d(size, size, 3, padding=1, bias=config.fusion_bias) for _ in range(2)
        )
        norms = [FixedBatchNorm(size) if config.fusion_norm else nn.Identity() for _ in range(2)]
        self.batch_norm1, self.batch_norm2 = norms

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden = self.batch_norm1(self.convolution1(F.relu(x_BCHW)))
        added: Tensor = x_BCHW + self.batch_norm2(self.convolution2(F.relu(hidden)))
        return added


class Head(nn.Module):
    """Classes of the cells of a plane, and twice the resolution."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        size = config.fusion_size
        self.convolution = nn.Conv2d(size, size, 3, padding=1, bias=False)
        self.norm = FixedBatchNorm(size)
        self.classifier = nn.Conv2d(size, config.num_labels, 1)

    def forward(self, plane: Tensor) -> Tensor:
        """[B, fusion, H, W] -> logits [B, classes, 2H, 2W]."""
        logits = self.classifier(F.relu(self.norm(self.convolution(plane))))
        return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)
