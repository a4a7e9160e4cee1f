"""From pixels to tokens: patches, prefix tokens, position embeddings."""

from __future__ import annotations

from collections.abc import Sequence

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
        self.base_grid, self.resampling, self.antialias = config.base_grid, config.resampling, config.antialias
        self.projection = nn.Conv2d(config.num_channels, size, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size)) if config.num_prefix else None
        distilled = config.num_prefix - config.num_registers > 1
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, size)) if distilled else None
        registers = config.num_registers
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, size)) if registers else None
        self.num_placed = config.num_prefix if config.prefix_positions else 0
        """Prefix tokens with position embeddings."""
        places = self.num_placed + self.base_grid.num_patches
        self.position_embeddings = nn.Parameter(torch.zeros(1, places, size))

    def forward(self, images_CHW: Sequence[Tensor], grid: Grid) -> Tensor:
        """Tokens [B, tokens, D] of images [C, H, W] of one size; a tensor [B, C, H, W] is such a sequence too."""
        tokens = (self.cls_token, self.distillation_token, self.register_tokens)
        prefix = [token.expand(len(images_CHW), -1, -1) for token in tokens if token is not None]
        return torch.cat([*prefix, self._patches(images_CHW, grid)], dim=1) + self.positions(grid)

    def _patches(self, images_CHW: Sequence[Tensor], grid: Grid) -> Tensor:
        """The convolution [B, patches, D], as one product over the patches' pixels."""
        weight, patch = self.projection.weight, self.projection.kernel_size[0]
        pixels_PK = weight.new_empty(len(images_CHW), grid.height, grid.width, weight[0].numel())
        seen = pixels_PK.unflatten(3, (len(weight[0]), patch, patch))
        for place, image in enumerate(images_CHW):
            cut = image.unflatten(1, (grid.height, patch)).unflatten(3, (grid.width, patch))
            seen[place] = cut.permute(1, 3, 0, 2, 4)
        return F.linear(pixels_PK.flatten(1, 2), weight.flatten(1), self.projection.bias)

    def positions(self, grid: Grid) -> Tensor:
        """Position embeddings [1, tokens, D], zeros where a token has none; those of patches resampled for another
        grid, in float32."""
        prefix, patches = self.position_embeddings.split([self.num_placed, self.base_grid.num_patches], dim=1)
        if grid != self.base_grid:
            plane = patches.unflatten(1, self.base_grid[:2]).permute(0, 3, 1, 2).float()
            plane = F.interpolate(
                plane, size=grid[:2], mode=self.resampling, align_corners=False, antialias=self.antialias
            )
            patches = plane.flatten(2).transpose(1, 2).to(prefix.dtype)
        elif self.num_placed == grid.num_prefix:
            return self.position_embeddings
        unplaced = prefix.new_zeros(1, grid.num_prefix - self.num_placed, prefix.shape[2])
        return torch.cat([prefix, unplaced, patches], dim=1)
