"""Vision transformers over packed batches of images that run different sub-networks at different token budgets.

One set of layers serves training (:meth:`ViT.forward`, images of one size at one operating point, differentiable) and
serving (:meth:`ViT.run`, any mix).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from stepwell.models.fields import ConfigError
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.ladder import Reduction, SubNetwork
from stepwell.models.layers.staircase import plan_spans
from stepwell.models.one_shot import Item, ItemOutput
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.embeddings import Embeddings
from stepwell.models.vit.explain import LayerMap, layer_map
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.groups import Group, GroupAttention, Place, join, split
from stepwell.models.vit.heads import ClassifierHead, LinearSegmenter, MaskTransformer, mean_patch, to_pixels
from stepwell.models.vit.layers import Layer
from stepwell.models.vit.reducers.base import Pass, Reducer, Schedule, build_reducers
from stepwell.models.vit.tally import full_schedule, tokens_kept

Note: TypeAlias = Callable[[int, Tensor], None]
"""Called with the index of a layer and the rows as they leave it, which the next one may write to."""


class ViT(nn.Module):
    """Embeddings, layers, final norm and head; every depth level leaves through the same norm and head."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.head = _build_head(config)
        self.reducers = build_reducers(config)
        self.linear = SliceLinear()

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    def prepare_serving(self, packed_bytes: int, ffn_widths: Collection[int] = ()) -> ViT:
        """Freeze the weights and allow ``packed_bytes`` of packed copies of their slices. ``ffn_widths`` is not looked
        at: an image has hundreds of rows, with which exact spans always win over wide ones."""
        self.requires_grad_(False).eval()
        self.linear = SliceLinear(packed_bytes)
        return self

    @torch.inference_mode()
    def run(self, items: Sequence[Item], wanted: Collection[str]) -> list[ItemOutput]:
        """See :class:`~stepwell.models.one_shot.OneShotModel`. Raises ConfigError for an image, a reducer or an output
        that the model does not have."""
        self._check_wanted(wanted)
        groups = self._group(items)
        x_TD = self._embed_all(groups, items)
        x_TD = self._run_layers(x_TD, groups)
        outputs: dict[int, ItemOutput] = {}
        for group, x_BTD in zip(groups, split(x_TD, groups), strict=True):
            found = self._outputs(x_BTD, group.grid, group.way, wanted)
            kept = self.kept(group)
            for place, index in enumerate(group.indices):
                outputs[index] = ItemOutput({name: found[name][place].float() for name in wanted}, kept)
        return [outputs[index] for index in range(len(items))]

    def forward(
        self,
        pixels_BCHW: Tensor,
        subnet: SubNetwork | None = None,
        reduction: Reduction | None = None,
        wanted: Collection[str] = ("logits",),
    ) -> dict[str, Tensor]:
        """Differentiable run of images of one size at one operating point (None = the full model, all tokens).

        Returns the wanted outputs by name, each with a leading dimension B.
        """
        self._check_wanted(wanted)
        group = self._new_group(subnet or self.config.architecture.full, reduction, tuple(pixels_BCHW.shape[1:]))
        group.indices = list(range(len(pixels_BCHW)))
        x_TD = self._run_layers(self._embed(group, list(pixels_BCHW)), [group])
        return self._outputs(group.view(x_TD), group.grid, group.way, wanted)

    @torch.inference_mode()
    def explain(self, item: Item) -> list[LayerMap]:
        """For every layer that the item's sub-network reaches, where each patch was when it ran."""
        maps: list[LayerMap] = []
        groups = self._group([item])
        note: Note = lambda layer, x_TD: maps.append(layer_map(groups[0].way, groups[0].grid))  # noqa: E731
        self._run_layers(self._embed(groups[0], [item.data]), groups, note)
        return maps

    @torch.inference_mode()
    def tap(self, items: Sequence[Item], layers: Collection[int]) -> list[tuple[Group, list[Tensor]]]:
        """Run a packed batch of items and read all tokens of the grid after some layers, from the lowest on: of each
        group of items that run alike [items, tokens, D] a layer, without the final norm. Errors as of :meth:`run`."""
        groups = self._group(items)
        taps: list[list[Tensor]] = [[] for _ in groups]

        def note(layer: int, x_TD: Tensor) -> None:
            if layer in layers:
                for group, found, x_BTD in zip(groups, taps, split(x_TD, groups), strict=True):
                    found.append(group.way.restore(x_BTD).clone())

        x_TD = self._embed_all(groups, items)
        self._run_layers(x_TD, groups, note)
        return list(zip(groups, taps, strict=True))

    def kept(self, group: Group) -> int:
        """Tokens that a layer runs of each of a group's items, on average."""
        schedule = self.schedule(group.subnet, group.reduction, group.grid)
        return tokens_kept(schedule, group.subnet, group.grid.num_tokens)

    def schedule(self, subnet: SubNetwork, reduction: Reduction | None, grid: Grid) -> Schedule:
        """Tokens that attention and FFN of each layer up to the sub-network's depth run for one item."""
        if reduction is None or reduction.budget >= 1.0:
            return full_schedule(grid.num_tokens, subnet.depth)
        return self._reducer(reduction.reducer).schedule(grid, subnet.depth, reduction.budget)

    def _reducer(self, name: str) -> Reducer:
        if name not in self.reducers:
            raise ConfigError(f"reducer: {name!r} is not one of this model; use one of {', '.join(self.reducers)}")
        reducer = self.reducers[name]
        assert isinstance(reducer, Reducer)
        if self.config.task == "segment" and not reducer.restores_patches:
            raise ConfigError(
                f"reducer: {name!r} leaves patches without a token, which segmentation needs; use another"
            )
        return reducer

    def _check_wanted(self, wanted: Collection[str]) -> None:
        if unknown := sorted(set(wanted) - self.config.outputs.keys()):
            raise ConfigError(f"output: {unknown[0]!r} is not one of {', '.join(self.config.outputs)}")

    def _new_group(self, subnet: SubNetwork, reduction: Reduction | None, shape: tuple[int, ...]) -> Group:
        grid = self.config.grid(shape)
        if reduction is None or reduction.budget >= 1.0:
            way = Pass(grid)
        else:
            way = self._reducer(reduction.reducer).begin(grid, subnet.depth, reduction.budget)
        return Group(subnet, grid, reduction, way)

    def _group(self, items: Sequence[Item]) -> list[Group]:
        """Items that run alike together, largest sub-network first."""
        groups: dict[tuple[SubNetwork, Reduction | None, tuple[int, ...]], Group] = {}
        for index, item in enumerate(items):
            key = (item.subnet, item.reduction, tuple(item.data.shape))
            if key not in groups:
                groups[key] = self._new_group(*key)
            groups[key].indices.append(index)
        # The widths keep equal sub-networks together when a batch mixes ladders; equal token counts attend together.
        return sorted(
            groups.values(),
            key=lambda g: (-g.subnet.num_units, g.subnet.kv_groups, g.subnet.ffn_channels, g.grid.num_tokens),
        )

    def _embed(self, group: Group, images: Sequence[Tensor]) -> Tensor:
        x_BTD: Tensor = self.embeddings(images, group.grid)
        group.num_tokens = x_BTD.shape[1]
        return x_BTD.flatten(0, 1)

    def _embed_all(self, groups: Sequence[Group], items: Sequence[Item]) -> Tensor:
        parts = [self._embed(group, [items[i].data for i in group.indices]) for group in groups]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _run_layers(self, x_TD: Tensor, groups: Sequence[Group], note: Note | None = None) -> Tensor:
        """``note`` is called after each layer."""
        depth = max((group.subnet.depth for group in groups), default=0)
        for index, layer in enumerate(self._layers()[:depth]):
            x_TD = _reduce(x_TD, groups, index, "before_layer")
            rows = [group.num_rows for group in groups]
            heads = plan_spans([group.subnet.kv_groups[index] for group in groups], rows)
            x_TD = layer.run_attention(x_TD, heads, GroupAttention(groups, index), self.linear)
            x_TD = _between(x_TD, groups, index)
            rows = [group.num_rows for group in groups]
            channels = plan_spans([group.subnet.ffn_channels[index] for group in groups], rows)
            x_TD = layer.run_ffn(x_TD, channels, self.linear)
            x_TD = _reduce(x_TD, groups, index, "after_layer")
            if note is not None:
                note(index, x_TD)
        return x_TD

    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _outputs(self, x_BTD: Tensor, grid: Grid, way: Pass, wanted: Collection[str]) -> dict[str, Tensor]:
        """The wanted outputs of one group's final tokens, each [B, ...]."""
        if self.config.task == "segment":
            return self._segment(x_BTD, grid, way, wanted)
        pooling, num_prefix, sizes = self.config.pooling, self.config.num_prefix, way.sizes_BT
        if pooling in ("cls", "cls_and_distillation") and "last_hidden_state" not in wanted:
            x_BTD = x_BTD[:, :num_prefix]
        if pooling == "mean":
            normed, pooled = x_BTD, self.norm(mean_patch(x_BTD, num_prefix, sizes))
        else:
            normed = self.norm(x_BTD)
            pooled = normed[:, 0]
        found = {"last_hidden_state": normed, "embedding": pooled}
        if "logits" in wanted:
            assert isinstance(self.head, ClassifierHead)
            found["logits"] = self.head(normed, pooled, sizes)
        return found

    def _segment(self, x_BTD: Tensor, grid: Grid, way: Pass, wanted: Collection[str]) -> dict[str, Tensor]:
        found = {"last_hidden_state": self.norm(x_BTD)}
        if "logits" in wanted:
            assert isinstance(self.head, (LinearSegmenter, MaskTransformer))
            # The norm comes last: tokens that stopped are given back as the layers left them.
            logits_BNC = self.head(self.norm(way.restore(x_BTD))[:, grid.num_prefix :], self.linear)
            found["logits"] = to_pixels(logits_BNC, grid, self.config.patch_size)
        return found


def _build_head(config: ViTConfig) -> nn.Module | None:
    if not config.num_labels:
        return None
    if config.task != "segment":
        return ClassifierHead(config)
    return MaskTransformer(config) if config.segmentation_head == "mask_transformer" else LinearSegmenter(config)


def _reduce(x_TD: Tensor, groups: Sequence[Group], layer: int, place: Place) -> Tensor:
    """Have every pass that goes on do what it does before or after a layer."""
    parts, changed = split(x_TD, groups), {}
    for index, group in enumerate(groups):
        if layer < group.subnet.depth:
            new_BTD = getattr(group.way, place)(layer, parts[index])
            if new_BTD is not parts[index]:
                changed[index] = new_BTD
    return join(x_TD, groups, changed)


def _between(x_TD: Tensor, groups: Sequence[Group], layer: int) -> Tensor:
    parts, changed = split(x_TD, groups), {}
    for index, group in enumerate(groups):
        if layer < group.subnet.depth:
            new_BTD = group.way.between(layer, parts[index], group.keys)
            if new_BTD is not parts[index]:
                changed[index] = new_BTD
    return join(x_TD, groups, changed)
