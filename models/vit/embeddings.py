"""From pixels to tokens: patches, prefix tokens, position embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.grid import Grid


class Embeddings(nn.Module):
    """Linear embedding of patches behind the prefix tokens, with learned positions (Dosovitskiy et al. 2021)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        self.base_grid, self.resampling = config.base_grid, config.resampling
        self.projection = nn.Conv2d(config.num_channels, size, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size)) if config.num_prefix else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, size)) if config.num_prefix > 1 else None
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.base_grid.num_tokens, size))

    def forward(self, pixels_BCHW: Tensor, grid: Grid) -> Tensor:
        """Tokens [B, tokens, D] of images of one size."""
        patches = self.projection(pixels_BCHW.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)
        prefix = [t.expand(len(patches), -1, -1) for t in (self.cls_token, self.distillation_token) if t is not None]
        return torch.cat([*prefix, patches], dim=1) + self.positions(grid)

    def positions(self, grid: Grid) -> Tensor:
        """Position embeddings [1, tokens, D]; those of patches resampled for another grid, in float32."""
        if grid == self.base_grid:
            return self.position_embeddings
        prefix, patches = self.position_embeddings.split([grid.num_prefix, self.base_grid.num_patches], dim=1)
        plane = patches.unflatten(1, self.base_grid[:2]).permute(0, 3, 1, 2).float()
        plane = F.interpolate(plane, size=grid[:2], mode=self.resampling, align_corners=False)
        return torch.cat([prefix, plane.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)
