"""What a request asked for, read from its gRPC deadline, its call metadata and its parameters.

Precedence, first that is present wins: metadata, then parameters, then (if neither names a class) the model's default
class; its latencies apply only if no other was stated. Within one source a number wins over the class named beside it.
A gRPC deadline, less a margin for the way back, bounds whatever was asked. ``timeout`` (microseconds) limits the wait
in the queue; 0 = no limit, as in the protocol. Nonsense anywhere, used or not, is INVALID_ARGUMENT naming the key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stepwell.schedulers.request import SLO
from stepwell.serving.config import SLOClass
from stepwell.serving.config_reader import suggest
from stepwell.serving.errors import invalid
from stepwell.serving.parameters import Parameters, ParameterValue, check_keys, fraction, milliseconds, text, whole

MARGIN_S = 0.005
MARGIN_RATIO = 0.05

METADATA_PREFIX = "x-stepwell-"
_METADATA_KEYS = {
    "slo_ms": ("x-stepwell-slo-ms",),
    "ttft_ms": ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"),
    "tpot_ms": ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"),
    "slo_class": ("x-stepwell-slo-class",),
    "min_quality": ("x-stepwell-min-quality",),
}
SLO_METADATA = frozenset(key for keys in _METADATA_KEYS.values() for key in keys)
"""Metadata keys that mean something here."""
_QUALITY_REMEDY = "send the quality floor relative to the full model or leave it out"


@dataclass(frozen=True)
class ParsedSLO:
    """The objectives of one request, with absolute times on the server's clock."""

    slo: SLO
    hard_deadline_s: float
    """After this nobody waits for the answer; ``inf`` = never."""
    queue_deadline_s: float
    """It must have started by then; ``inf`` = whenever."""
    operating_point: str | None
    """The one point it is pinned to, if any."""
    token_budget: float | None = None
    """Fraction of tokens to keep, in (0, 1], if stated."""


@dataclass(frozen=True)
class _Wishes:
    """What one source states; seconds; None = nothing."""

    deadline_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    min_quality: float | None = None

    @property
    def asks_latency(self) -> bool:
        return not (self.deadline_s is None and self.ttft_s is None and self.tpot_s is None)


def parse_slo(
    *,
    time_remaining_s: float | None,
    metadata: Mapping[str, str],
    parameters: Parameters,
    classes: Mapping[str, SLOClass],
    default_class: str,
    now: float,
    margin_s: float = MARGIN_S,
    margin_ratio: float = MARGIN_RATIO,
) -> ParsedSLO:
    """Read the objectives of a request that arrived at clock time ``now``.

    ``time_remaining_s`` is what is left of the gRPC deadline, None if there is none. ``metadata`` has lower-case keys.
    Raises RequestError (INVALID_ARGUMENT).
    """
    check_keys(parameters)
    layers, named_classes = [], []
    for source in (_from_metadata(metadata), {key: (key, value) for key, value in parameters.items()}):
        named_classes.append(_class_of(source, classes))
        layers += [_explicit(source), _of_class(classes, named_classes[-1])]
    if not any(named_classes):
        default = _of_class(classes, default_class)
        asked = any(layer.asks_latency for layer in layers)
        layers.append(_Wishes(min_quality=default.min_quality) if asked else default)
    class_name = next((name for name in named_classes if name), default_class)
    slo = SLO(
        slo_class=class_name,
        deadline_s=_first(layers, "deadline_s", math.inf),
        ttft_s=_first(layers, "ttft_s", math.inf),
        tpot_s=_first(layers, "tpot_s", math.inf),
        min_quality=_first(layers, "min_quality", 0.0),
        priority=_priority(parameters) or classes[class_name].priority,
    )
    return ParsedSLO(
        slo,
        hard_deadline(time_remaining_s, now, margin_s, margin_ratio),
        _queue_deadline(parameters, now),
        _operating_point(parameters),
        _token_budget(parameters),
    )


def stated_class(
    metadata: Mapping[str, str], parameters: Parameters, classes: Mapping[str, SLOClass], default_class: str
) -> str:
    """The class that a request belongs to, for counting one that is not looked at further; never raises."""
    named = (*(metadata.get(key) for key in _METADATA_KEYS["slo_class"]), parameters.get("slo_class"))
    return next((name for name in named if isinstance(name, str) and name in classes), default_class)


def _from_metadata(metadata: Mapping[str, str]) -> dict[str, tuple[str, ParameterValue]]:
    """Parameter name -> (metadata key, value), the canonical key before its alias."""
    for key, value in metadata.items():
        if key.startswith(METADATA_PREFIX) and key not in SLO_METADATA:
            raise invalid(key, "unknown metadata key", value, suggest(key, SLO_METADATA))
        if key in SLO_METADATA and key.endswith("-ms"):
            milliseconds(key, value)
    found: dict[str, tuple[str, ParameterValue]] = {}
    for name, keys in _METADATA_KEYS.items():
        for key in reversed(keys):
            if key in metadata:
                found[name] = (key, metadata[key])
    return found


def _explicit(stated: Mapping[str, tuple[str, ParameterValue]]) -> _Wishes:
    def seconds(name: str) -> float | None:
        return milliseconds(*stated[name]) if name in stated else None

    floor = fraction(*stated["min_quality"], _QUALITY_REMEDY) if "min_quality" in stated else None
    return _Wishes(seconds("slo_ms"), seconds("ttft_ms"), seconds("tpot_ms"), floor)


def _class_of(stated: Mapping[str, tuple[str, ParameterValue]], classes: Mapping[str, SLOClass]) -> str | None:
    if "slo_class" not in stated:
        return None
    key, value = stated["slo_class"]
    remedy = f"send one of {sorted(classes)} or leave it out"
    if (name := text(key, value, remedy)) not in classes:
        raise invalid(key, "unknown class", value, remedy)
    return name


def _of_class(classes: Mapping[str, SLOClass], name: str | None) -> _Wishes:
    if name is None:
        return _Wishes()
    chosen = classes[name]
    seconds = [None if ms is None else ms / 1000.0 for ms in (chosen.deadline_ms, chosen.ttft_ms, chosen.tpot_ms)]
    return _Wishes(seconds[0], seconds[1], seconds[2], chosen.min_quality)


def _first(layers: list[_Wishes], name: str, otherwise: float) -> float:
    values = (getattr(layer, name) for layer in layers)
    return next((value for value in values if value is not None), otherwise)


def hard_deadline(time_remaining_s: float | None, now: float, margin_s: float, margin_ratio: float) -> float:
    """Clock time after which nobody waits for the answer; ``inf`` = never. See :func:`parse_slo`."""
    if time_remaining_s is None:
        return math.inf
    return now + time_remaining_s - min(margin_s, max(time_remaining_s, 0.0) * margin_ratio)


def _queue_deadline(parameters: Parameters, now: float) -> float:
    if "timeout" not in parameters:
        return math.inf
    remedy = "send the longest wait in the queue in microseconds, 0 for no limit, or leave it out"
    timeout_us = whole("timeout", parameters["timeout"], 0, remedy)
    return now + timeout_us / 1e6 if timeout_us else math.inf


def _priority(parameters: Parameters) -> int:
    remedy = "send 1 for the most urgent, larger for less, 0 for the default"
    return whole("priority", parameters["priority"], 0, remedy) if "priority" in parameters else 0


def _operating_point(parameters: Parameters) -> str | None:
    if "operating_point" not in parameters:
        return None
    remedy = "send LADDER:LEVEL, 'max' or 'min', or leave it out"
    return text("operating_point", parameters["operating_point"], remedy)


def _token_budget(parameters: Parameters) -> float | None:
    if "token_budget" not in parameters:
        return None
    return fraction("token_budget", parameters["token_budget"], "send the fraction of tokens to keep or leave it out")
