"""DPT: a vision transformer whose tokens after several layers are read by a convolutional neck, a class a pixel.

The backbone runs items packed as any vision transformer; neck and head run a group of items (one size, level and
budget) at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.fields import ConfigError
from stepwell.models.one_shot import Item, ItemOutput
from stepwell.models.vit.dpt_config import DptConfig
from stepwell.models.vit.dpt_neck import Head, Neck
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.model import ViT


class Dpt(nn.Module):
    """Backbone, neck and head. Fulfils :class:`~stepwell.models.one_shot.OneShotModel`."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ViT(config.backbone)
        self.neck = Neck(config)
        self.head = Head(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.classifier.weight.dtype

    def prepare_serving(self, packed_bytes: int, ffn_widths: Collection[int] = ()) -> Dpt:
        """Freeze the weights and allow ``packed_bytes`` of packed copies of the backbone's."""
        self.requires_grad_(False).eval()
        self.backbone.prepare_serving(packed_bytes, ffn_widths)
        return self

    @torch.inference_mode()
    def run(self, items: Sequence[Item], wanted: Collection[str]) -> list[ItemOutput]:
        """See :class:`~stepwell.models.one_shot.OneShotModel`. Raises ConfigError for an image, a level, a reducer or
        an output that the model does not have."""
        if unknown := sorted(set(wanted) - self.config.outputs.keys()):
            raise ConfigError(f"output: {unknown[0]!r} is not one of {', '.join(self.config.outputs)}")
        layers = [tap.layer for tap in self.config.taps]
        for depth in {item.subnet.depth for item in items}:
            if depth <= layers[-1]:
                raise ConfigError(
                    f"level: runs {depth} layers, but DPT's neck reads the tokens after layers "
                    f"{', '.join(str(layer + 1) for layer in layers)}; use levels of heads, channels or token budgets"
                )
        outputs: dict[int, ItemOutput] = {}
        for group, taps in self.backbone.tap(items, layers):
            logits = self._logits(taps, group.grid) if wanted else None
            kept = self.backbone.kept(group)
            for place, index in enumerate(group.indices):
                tensors = {} if logits is None else {"logits": logits[place]}
                outputs[index] = ItemOutput(tensors, kept)
        return [outputs[index] for index in range(len(items))]

    def _logits(self, taps: Sequence[Tensor], grid: Grid) -> Tensor:
        """float32 [B, classes, H, W], brought to the images' size bilinearly."""
        logits: Tensor = self.head(self.neck(taps, grid)[self.config.head_input]).float()
        patch = self.config.backbone.patch_size
        size = (grid.height * patch, grid.width * patch)
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
