"""Recipes of the vision transformers: frozen, written into every checkpoint, compared on resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from stepwell.models.training.vision.scenes import CELL, SCENE_SIDE
from stepwell.models.training.vision.stencils import CLASSES

Self = TypeVar("Self", bound="DenseConfig")


@dataclass(frozen=True)
class DenseConfig:
    """Recipe of a plain vision transformer on scenes: the first half of what makes ``routed-vit``."""

    output: Path
    """Folder the run writes."""
    hidden_size: int = 96
    num_layers: int = 6
    num_heads: int = 6
    ffn_channels: int = 288
    num_steps: int = 1200
    batch_size: int = 64
    """Scenes per forward."""
    token_weight: float = 1.0
    """Weight of the cross-entropy of the patches' own labels beside that of the scene's (arXiv 2104.10858)."""
    learning_rate: float = 8e-3
    embedding_rate: float = 4e-3
    warmup_steps: int = 50
    decay_share: float = 0.02
    """Hardly any: the second stage goes on from where this one ends."""
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0
    checkpoint_every: int = 25
    num_held_out: int = 4096
    """Held-out scenes that every level is measured on: the standard error of an accuracy of 95 % is 0.3 %."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "checkpoint_every", "num_layers", "ffn_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be >= 1, got {getattr(self, name)}; raise it")
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size: expected a multiple of 4 x num_heads = {4 * self.num_heads}, got {self.hidden_size}; "
                "change one of them"
            )
        if not 0.0 < self.decay_share <= 1.0:
            raise ValueError(f"decay_share: expected a share in (0, 1], got {self.decay_share}; change it")

    def to_json(self) -> dict[str, Any]:
        """The recipe without the folder, as JSON holds it. Two runs with the same one learn the same weights."""
        document = {key: value for key, value in asdict(self).items() if key != "output"}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}

    @classmethod
    def from_json(cls: type[Self], document: Mapping[str, Any], output: Path) -> Self:
        """The inverse of :meth:`to_json`. Raises ValueError for a field this version does not know."""
        if unknown := set(document) - {item.name for item in fields(cls)}:
            raise ValueError(f"{sorted(unknown)[0]}: not a field of the recipe; the checkpoint is of another version")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
        }
        return cls(output=output, **values)

    def hf_config(self) -> dict[str, Any]:
        """``config.json`` of the model: Hugging Face's ViT layout."""
        return {
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.ffn_channels,
            "image_size": SCENE_SIDE,
            "patch_size": CELL,
            "num_channels": 3,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "qkv_bias": True,
            "id2label": {str(index): name for index, name in enumerate(CLASSES)},
            "label2id": {name: index for index, name in enumerate(CLASSES)},
            "torch_dtype": "float32",
        }


@dataclass(frozen=True)
class SupernetConfig(DenseConfig):
    """Recipe of the shipped ``nested-vit``: every depth x FFN width x number of heads below is a network of its own."""

    batch_size: int = 48
    num_steps: int = 1700
    decay_share: float = 0.4
    depths: tuple[int, ...] = (2, 3, 4, 5, 6)
    ffn_widths: tuple[int, ...] = (36, 72, 108, 144, 180, 216, 252, 288)
    heads: tuple[int, ...] = (3, 4, 5, 6)
    num_held_out: int = 2048
    smaller_networks: int = 1
    """Sub-networks sampled per optimiser step beside the full one; each has a batch of its own and the same weight (the
    gradient accumulation of SortedNet, arXiv 2309.00255)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, full in (("depths", self.num_layers), ("ffn_widths", self.ffn_channels), ("heads", self.num_heads)):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < 1 or values[-1] != full:
                raise ValueError(f"{name}: expected ascending numbers up to the full {full}, got {values}; correct it")


@dataclass(frozen=True)
class RoutedConfig(DenseConfig):
    """Recipe of the shipped ``routed-vit``: a plain network first, then gates and slimming modules with it."""

    dense_steps: int = 1200
    """Optimiser steps of the first stage, which is a :class:`DenseConfig` of the same sizes."""
    batch_size: int = 64
    num_steps: int = 300
    """Optimiser steps of the second stage; the rates below are its."""
    learning_rate: float = 6e-3
    warmup_steps: int = 10
    decay_share: float = 1.0
    route_profile: tuple[float, ...] = (1.0, 0.7, 0.5, 0.4, 0.4, 0.4)
    """Tokens of each layer relative to the first (:class:`~stepwell.models.vit.reducers.routing.Routing`)."""
    route_early_stop: bool = True
    """Whether a token that was passed by once is done; otherwise each layer's gate scores all tokens again."""
    slim_before: tuple[int, ...] = (1, 3)
    """Layers that a slimming module is before (:class:`~stepwell.models.vit.reducers.slimming.Slimming`)."""
    downsample_before: tuple[int, ...] = ()
    """Layers whose gate down-samples (:class:`~stepwell.models.vit.reducers.downsampling.Downsampling`, which has the
    profile of ``route``); none, as in the shipped model = no such reducer."""
    least_budget: float = 0.2
    """Budgets are sampled from here to 1, small ones more often."""
    budget_weight: float = 1.0
    """Weight of (C / C_base - budget)^2, C being what the gates' probabilities would run (DiT)."""
    gate_weight: float = 1.0
    """Weight of the cross-entropy of the gates' scores with what the whole network says of the patches."""
    noise: float = 0.5
    """Gumbel noise of the gates' scores at the first step."""
    noise_share: float = 0.5
    """Share of the steps, from the start, over which the noise falls to zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.least_budget < 1.0:
            raise ValueError(f"least_budget: expected a share in (0, 1), got {self.least_budget}; change it")

    @property
    def dense(self) -> DenseConfig:
        """The recipe of the first stage."""
        return DenseConfig(
            output=self.output / "dense",
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            ffn_channels=self.ffn_channels,
            num_steps=self.dense_steps,
            batch_size=self.batch_size,
            token_weight=self.token_weight,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
        )

    def hf_config(self) -> dict[str, Any]:
        """As of the plain network, with what the reducers need to know."""
        route = {"profile": list(self.route_profile), "early_stop": self.route_early_stop}
        slim = {"before": list(self.slim_before), "ratio": 0.5}
        reducers: dict[str, Any] = {"route": route, "slim": slim}
        if self.downsample_before:
            reducers["downsample"] = {"profile": list(self.route_profile), "before": list(self.downsample_before)}
        return {**super().hf_config(), "reducers": reducers}
