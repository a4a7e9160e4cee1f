"""Sub-networks, ladders of nested levels, and ``ladder.json``.

A sub-network of a decoder is what each layer runs: a prefix of its key-value head groups and a prefix of its FFN
channels (SortedNet, arXiv 2309.00255: prefix along every sorted dimension; LLM-Drop: a prefix of length 0 is a
dropped sub-layer). A ladder is a chain of nested sub-networks: level k contains every unit of level k - 1.

``ladder.json`` beside the weights::

    {"format": 1,
     "quality_metric": {"name": "bits_per_byte", "better": "lower", "data": "held-out files ..."},
     "default": "default",
     "ladders": {
       "depth": {"kv": "exact", "levels": [{"layers": 1, "quality": 0.61, "metric": 3.4}, ...]},
       "width": {"kv": "approximate", "levels": [{"ffn": 128, "quality": 0.8}, ...]}}}

A level lists only what it leaves out: ``layers`` (first n), ``ffn`` (channels: one number or one a layer),
``kv_groups`` (key-value head groups: likewise), ``drop_attention`` / ``drop_ffn`` (layer indices), ``budget`` (share of
tokens kept, by the ladder's ``reducer``: ``"merge": {"reducer": "merge", "levels": [{"budget": 0.25, ...}, ...]}``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

LADDER_FORMAT = 1
LADDER_FILE = "ladder.json"

KVSwitch = Literal["exact", "approximate", "static"]
"""Whether a generation may change level: ``exact`` (depth nesting), ``approximate`` (shapes fit, values differ),
``static`` (never)."""

SwitchKind = Literal["exact", "approximate"]
"""What going from one sub-network to another in mid-generation does to what is computed afterwards."""


class LadderError(ValueError):
    """A ladder file or an operating point that does not fit the model. The message names the field and the remedy."""


@dataclass(frozen=True)
class SubNetwork:
    """What each layer of a decoder runs. All tuples have one entry per layer of the full model."""

    kv_groups: tuple[int, ...]
    """Leading key-value head groups (a key-value head with its query heads); 0 = no attention sub-layer."""
    ffn_channels: tuple[int, ...]
    """Leading FFN channels; 0 = no FFN sub-layer."""

    @cached_property
    def depth(self) -> int:
        """Layers from the first that must run: 1 + the last layer with any unit (0 = none)."""
        used = [i for i, (g, c) in enumerate(zip(self.kv_groups, self.ffn_channels, strict=True)) if g or c]
        return used[-1] + 1 if used else 0

    @cached_property
    def kv_layers(self) -> tuple[int, ...]:
        """Layers that hold keys and values."""
        return tuple(i for i, groups in enumerate(self.kv_groups) if groups)

    @cached_property
    def num_units(self) -> int:
        """Head groups plus channels: grows strictly along a ladder, so sorting by it sorts a chain."""
        return sum(self.kv_groups) + sum(self.ffn_channels)

    def contains(self, other: SubNetwork) -> bool:
        """True if every unit of ``other`` is in this sub-network."""
        pairs = zip(self.kv_groups + self.ffn_channels, other.kv_groups + other.ffn_channels, strict=True)
        return all(mine >= theirs for mine, theirs in pairs)

    def shares_kv_with(self, provider: SubNetwork) -> bool:
        """True if every key and value this sub-network reads equals the one ``provider`` computed.

        Keys and values of layer l depend on all units of the layers before l: those must be the same; in layer l
        itself ``provider`` needs at least the same head groups. So a depth level reads the pages of any deeper one.
        """
        if not self.kv_layers:
            return True
        last = self.kv_layers[-1]
        return (
            self.kv_groups[:last] == provider.kv_groups[:last]
            and self.ffn_channels[:last] == provider.ffn_channels[:last]
            and self.kv_groups[last] <= provider.kv_groups[last]
        )

    def is_start_of(self, other: SubNetwork) -> bool:
        """True if this is ``other`` left after some layer (or all of it): their first ``depth`` layers are the same."""
        depth = self.depth
        return (
            self.kv_groups[:depth] == other.kv_groups[:depth]
            and self.ffn_channels[:depth] == other.ffn_channels[:depth]
        )

    def switch_kind(self, other: SubNetwork) -> SwitchKind | None:
        """What a generation may expect that goes from one of the two to the other and back; symmetric.

        ``exact`` if one is the start of the other: down, nothing is missing; up, the layers between run over the kept
        exit hidden states and write what they would have written. ``approximate`` if they read the same head groups in
        the layers that both pass: then tokens read keys and values that other FFN widths led to. None if there are
        head groups that one reads and the other never writes.
        """
        if self.is_start_of(other) or other.is_start_of(self):
            return "exact"
        both = min(self.depth, other.depth)
        return "approximate" if self.kv_groups[:both] == other.kv_groups[:both] else None


@lru_cache(maxsize=4096)
def layers_from(subnet: SubNetwork, first: int) -> SubNetwork:
    """``subnet`` without the units of the layers before ``first``: what rows run that join there. The same object for
    the same arguments, so that such rows of several sequences are planned as one."""
    return SubNetwork((0,) * first + subnet.kv_groups[first:], (0,) * first + subnet.ffn_channels[first:])


@dataclass(frozen=True)
class Architecture:
    """The dimensions a ladder is cut from."""

    num_layers: int
    num_kv_groups: int
    """Key-value heads per layer."""
    ffn_channels: int
    reducers: frozenset[str] = frozenset()
    """Names of the ways in which the model's family can reduce tokens."""

    @cached_property
    def full(self) -> SubNetwork:
        return SubNetwork((self.num_kv_groups,) * self.num_layers, (self.ffn_channels,) * self.num_layers)


@dataclass(frozen=True)
class Reduction:
    """What is left out along the third dimension of a model that takes one-shot inputs: its tokens."""

    reducer: str
    """How tokens are reduced; a name of the model's family, e.g. ``merge``."""
    budget: float
    """Tokens that a layer runs, averaged over the layers, as a share of those of the unreduced model; in (0, 1]."""


@dataclass(frozen=True)
class Level:
    """One level of a ladder."""

    subnet: SubNetwork
    quality: float
    """Relative to the full model, in (0, 1]."""
    metric: float | None = None
    """The measured task metric the quality comes from (e.g. bits per byte), if stored."""
    reduction: Reduction | None = None
    """None = all tokens run everywhere."""

    @property
    def budget(self) -> float:
        """Share of tokens kept; 1 without a reduction."""
        return self.reduction.budget if self.reduction else 1.0

    def contains(self, other: Level) -> bool:
        """True if nothing that ``other`` runs is left out here."""
        return self.subnet.contains(other.subnet) and self.budget >= other.budget


@dataclass(frozen=True)
class Ladder:
    """A named chain of nested levels, smallest first."""

    name: str
    levels: tuple[Level, ...]
    kv: KVSwitch = "static"

    def __post_init__(self) -> None:
        if not self.levels:
            raise LadderError(f"ladders.{self.name}.levels: empty; list at least one level")
        for k in range(1, len(self.levels)):
            if not self.levels[k].contains(self.levels[k - 1]):
                raise LadderError(
                    f"ladders.{self.name}.levels[{k}]: does not contain level {k - 1}; order levels from smallest "
                    "to largest so that each contains every unit and keeps every token of the one before"
                )

    @cached_property
    def _switches(self) -> frozenset[tuple[int, int]]:
        pairs = combinations(range(len(self.levels)), 2)
        kinds = {(a, b): self.levels[a].subnet.switch_kind(self.levels[b].subnet) for a, b in pairs}
        allowed = {"static": (), "exact": ("exact",), "approximate": ("exact", "approximate")}[self.kv]
        return frozenset(pair for pair, kind in kinds.items() if kind in allowed)

    def point_name(self, level: int) -> str:
        """``LADDER:LEVEL``, with ``@BUDGET`` where tokens are reduced."""
        reduction = self.levels[level].reduction
        return f"{self.name}:{level}" + (f"@{reduction.budget:g}" if reduction else "")

    def may_switch(self, levels: Iterable[int]) -> bool:
        """Whether a generation may go from any of these levels to any other, as far as the ladder's ``kv`` allows."""
        return all(pair in self._switches for pair in combinations(sorted(levels), 2))


@dataclass(frozen=True)
class LadderSet:
    """All ladders of one model, the description of its quality metric, and the name of its default ladder."""

    architecture: Architecture
    ladders: Mapping[str, Ladder]
    default: str
    quality_metric: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.default not in self.ladders:
            raise LadderError(f"default: {self.default!r} is not a ladder; choose one of {sorted(self.ladders)}")

    def resolve(self, name: str) -> tuple[Ladder, int]:
        """``LADDER:LEVEL[@BUDGET]`` (or the aliases ``max`` and ``min`` of the default ladder) -> ladder and level. The
        budget may be left out: it is that of the level.

        Raises LadderError naming the choices if there is no such operating point.
        """
        ladder = self.ladders[self.default]
        if name == "max":
            return ladder, len(ladder.levels) - 1
        if name == "min":
            return ladder, 0
        ladder_name, _, level_and_budget = name.partition(":")
        level_text, *_ = level_and_budget.split("@")
        if ladder_name not in self.ladders:
            raise LadderError(
                f"operating_point: no ladder {ladder_name!r}, got {name!r}; use LADDER:LEVEL with one of "
                f"{sorted(self.ladders)}, or 'max' or 'min'"
            )
        ladder = self.ladders[ladder_name]
        if level_text not in map(str, range(len(ladder.levels))):
            raise LadderError(
                f"operating_point: ladder {ladder_name!r} has levels 0..{len(ladder.levels) - 1}, got {name!r}"
            )
        if "@" in name and name != (known := ladder.point_name(int(level_text))):
            raise LadderError(f"operating_point: level {level_text} of ladder {ladder_name!r} is {known}, got {name!r}")
        return ladder, int(level_text)

    def level(self, name: str) -> Level:
        """What runs at an operating point. Raises LadderError as :meth:`resolve`."""
        ladder, level = self.resolve(name)
        return ladder.levels[level]

    def subnet(self, name: str) -> SubNetwork:
        """The sub-network of an operating point's name. Raises LadderError as :meth:`resolve`."""
        return self.level(name).subnet


UNMEASURED_BUDGETS = (0.25, 0.4, 0.5, 0.65, 0.8, 1.0)


def unmeasured_ladders(architecture: Architecture) -> LadderSet:
    """The ladders of a checkpoint without ``ladder.json``: the full model alone; beside it, to be asked for, a ladder
    for each token reducer that the model has. Nobody has measured these: a level claims no more quality than the share
    of tokens it keeps."""
    full = architecture.full
    ladders = {"default": Ladder("default", (Level(full, 1.0),))}
    for reducer in sorted(architecture.reducers):
        levels = [Level(full, b, None, Reduction(reducer, b) if b < 1.0 else None) for b in UNMEASURED_BUDGETS]
        ladders[reducer] = Ladder(reducer, tuple(levels))
    data = "not measured: levels that reduce tokens claim the share they keep"
    return LadderSet(architecture, ladders, "default", {"name": "relative", "better": "higher", "data": data})


def load_ladders(path: Path, architecture: Architecture) -> LadderSet:
    """Read ``ladder.json`` and check it against the model's dimensions.

    Raises LadderError naming the file, the field, the value and the remedy.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LadderError(f"{path}: not readable as JSON ({error}); rewrite or remove the file") from error
    try:
        return parse_ladders(document, architecture)
    except LadderError as error:
        raise LadderError(f"{path}: {error}") from error


def parse_ladders(document: Any, architecture: Architecture) -> LadderSet:
    """The parsed content of ``ladder.json`` -> :class:`LadderSet`. Raises LadderError."""
    if not isinstance(document, dict):
        raise LadderError(f"top level: expected an object, got {type(document).__name__}")
    if document.get("format") != LADDER_FORMAT:
        raise LadderError(f"format: expected {LADDER_FORMAT}, got {document.get('format')!r}; regenerate the file")
    ladders = document.get("ladders")
    if not isinstance(ladders, dict) or not ladders:
        raise LadderError(f"ladders: expected a non-empty object, got {ladders!r}")
    parsed = {name: _parse_ladder(name, entry, architecture) for name, entry in ladders.items()}
    default = document.get("default", next(iter(parsed)))
    metric = document.get("quality_metric", {})
    if not isinstance(default, str) or not isinstance(metric, dict):
        raise LadderError("default: expected a ladder's name; quality_metric: expected an object")
    return LadderSet(architecture, parsed, default, {str(k): str(v) for k, v in metric.items()})


def _parse_ladder(name: str, entry: Any, architecture: Architecture) -> Ladder:
    where = f"ladders.{name}"
    if ":" in name or "@" in name or not name:
        raise LadderError(f"{where}: a ladder's name may not be empty nor contain ':' or '@'")
    if not isinstance(entry, dict) or not isinstance(entry.get("levels"), list):
        raise LadderError(f"{where}: expected an object with a list 'levels', got {entry!r}")
    kv = entry.get("kv", "static")
    if kv not in ("exact", "approximate", "static"):
        raise LadderError(f"{where}.kv: expected exact, approximate or static, got {kv!r}")
    reducer = entry.get("reducer")
    if reducer is not None and (not isinstance(reducer, str) or reducer not in architecture.reducers):
        names = ", ".join(sorted(architecture.reducers)) or "none for this model"
        raise LadderError(f"{where}.reducer: not a token reducer of this model, got {reducer!r}; there are: {names}")
    levels = tuple(
        _parse_level(f"{where}.levels[{k}]", level, architecture, reducer) for k, level in enumerate(entry["levels"])
    )
    ladder = Ladder(name, levels, kv)
    top = ladder.levels[-1].subnet
    if kv == "exact" and not all(level.subnet.shares_kv_with(top) for level in levels):
        raise LadderError(f"{where}.kv: 'exact' needs levels of the first n layers; say 'approximate' or 'static'")
    return ladder


def _parse_level(where: str, entry: Any, arch: Architecture, reducer: str | None) -> Level:
    if not isinstance(entry, dict):
        raise LadderError(f"{where}: expected an object, got {entry!r}")
    known = {"layers", "ffn", "kv_groups", "drop_attention", "drop_ffn", "budget", "quality", "metric"}
    if unknown := set(entry) - known:
        raise LadderError(f"{where}: unknown field {sorted(unknown)[0]!r}; known are {sorted(known)}")
    layers = _whole(f"{where}.layers", entry.get("layers", arch.num_layers), 0, arch.num_layers)
    ffn = _per_layer(f"{where}.ffn", entry.get("ffn", arch.ffn_channels), arch.ffn_channels, arch)
    groups = _per_layer(f"{where}.kv_groups", entry.get("kv_groups", arch.num_kv_groups), arch.num_kv_groups, arch)
    no_attention = _layer_set(f"{where}.drop_attention", entry.get("drop_attention", []), arch)
    no_ffn = _layer_set(f"{where}.drop_ffn", entry.get("drop_ffn", []), arch)
    quality = entry.get("quality", 1.0)
    if not isinstance(quality, (int, float)) or isinstance(quality, bool) or not 0.0 < quality <= 1.0:
        raise LadderError(f"{where}.quality: expected a number in (0, 1], got {quality!r}")
    metric = entry.get("metric")
    if metric is not None and (
        not isinstance(metric, (int, float)) or isinstance(metric, bool) or not math.isfinite(metric)
    ):
        raise LadderError(f"{where}.metric: expected a number, got {metric!r}")
    subnet = SubNetwork(
        tuple(0 if i >= layers or i in no_attention else groups[i] for i in range(arch.num_layers)),
        tuple(0 if i >= layers or i in no_ffn else ffn[i] for i in range(arch.num_layers)),
    )
    reduction = _reduction(where, entry.get("budget", 1.0), reducer)
    return Level(subnet, float(quality), None if metric is None else float(metric), reduction)


def _reduction(where: str, budget: Any, reducer: str | None) -> Reduction | None:
    if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not 0.0 < budget <= 1.0:
        raise LadderError(f"{where}.budget: expected a number in (0, 1], got {budget!r}")
    if budget == 1.0:
        return None
    if reducer is None:
        raise LadderError(f"{where}.budget: the ladder names no 'reducer' to keep {budget:g} of the tokens; add one")
    return Reduction(reducer, float(budget))


def _whole(where: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise LadderError(f"{where}: expected a whole number in {low}..{high} (the model's size), got {value!r}")
    return value


def _per_layer(where: str, value: Any, high: int, arch: Architecture) -> Sequence[int]:
    if not isinstance(value, list):
        return [_whole(where, value, 0, high)] * arch.num_layers
    if len(value) != arch.num_layers:
        raise LadderError(f"{where}: expected {arch.num_layers} numbers, one a layer, got {len(value)}")
    return [_whole(f"{where}[{i}]", item, 0, high) for i, item in enumerate(value)]


def _layer_set(where: str, value: Any, arch: Architecture) -> frozenset[int]:
    if not isinstance(value, list):
        raise LadderError(f"{where}: expected a list of layer indices, got {value!r}")
    return frozenset(_whole(f"{where}[{i}]", item, 0, arch.num_layers - 1) for i, item in enumerate(value))
