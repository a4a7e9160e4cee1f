"""Request parameters: which keys exist, and readers that turn one value into a checked number or text.

A value is a ``bool``, ``int``, ``float`` or ``str`` (the forms of the protocol's InferParameter); numbers are accepted
as text too. Every reader raises RequestError (INVALID_ARGUMENT) naming the key, the value and the remedy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from stepwell.serving.config_reader import suggest
from stepwell.serving.errors import invalid

ParameterValue = bool | int | float | str
Parameters = Mapping[str, ParameterValue]

SLO_KEYS = frozenset({"slo_ms", "ttft_ms", "tpot_ms", "slo_class", "min_quality", "operating_point", "token_budget"})
QUEUE_KEYS = frozenset({"timeout", "priority"})
SAMPLING_KEYS = frozenset({"max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "ignore_eos", "lossless"})
TRITON_EMPTY_FINAL = "triton_enable_empty_final_response"
TRITON_FINAL = "triton_final_response"
_TRITON_KEYS = frozenset({TRITON_EMPTY_FINAL, TRITON_FINAL})
_TOLERATED_KEYS = frozenset(
    {"sequence_id", "sequence_start", "sequence_end", "binary_data", "binary_data_output", "binary_data_size"}
)
"""Standard keys that mean nothing to a model without server-side sequences or binary HTTP bodies."""
KNOWN_KEYS = SLO_KEYS | QUEUE_KEYS | SAMPLING_KEYS | _TRITON_KEYS | _TOLERATED_KEYS
FREE_KEYS = (SAMPLING_KEYS - {"max_tokens", "lossless"}) | _TRITON_KEYS | _TOLERATED_KEYS
"""Keys whose values, once checked, make no difference to what a request costs."""
_OWN_KEYS = SLO_KEYS | QUEUE_KEYS | SAMPLING_KEYS

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


def check_keys(parameters: Parameters) -> None:
    """Refuse keys that mean nothing here, so that a misspelt wish is not silently ignored."""
    for key, value in parameters.items():
        if key not in KNOWN_KEYS:
            kind = "unknown reserved parameter" if key.startswith("triton_") else "unknown parameter"
            choices = _TRITON_KEYS if key.startswith("triton_") else _OWN_KEYS
            raise invalid(key, kind, value, suggest(key, choices))


def number(key: str, value: ParameterValue, remedy: str) -> float:
    """A finite number. ``remedy`` ends the error message."""
    is_numeral = isinstance(value, str) and _NUMBER.fullmatch(value.strip())
    if isinstance(value, bool) or not (is_numeral or isinstance(value, (int, float))):
        raise invalid(key, "must be a number", value, remedy)
    if not math.isfinite(parsed := float(value)):
        raise invalid(key, "must be finite", value, remedy)
    return parsed


def whole(key: str, value: ParameterValue, low: int, remedy: str) -> int:
    """A whole number >= ``low``; a float or text is accepted if it is whole."""
    if isinstance(value, bool) or not isinstance(value, int):
        as_float = number(key, value, remedy)
        if not as_float.is_integer():
            raise invalid(key, "must be a whole number", value, remedy)
        value = int(as_float)
    if value < low:
        raise invalid(key, f"must be >= {low}", value, remedy)
    return value


def milliseconds(key: str, value: ParameterValue) -> float:
    """A latency in milliseconds, > 0, finite. Returned in seconds."""
    remedy = "send the latency target in milliseconds or leave it out"
    if (parsed := number(key, value, remedy)) <= 0:
        raise invalid(key, "must be > 0", value, remedy)
    return parsed / 1000.0


def fraction(key: str, value: ParameterValue, remedy: str) -> float:
    """A number in (0, 1]."""
    if not 0.0 < (parsed := number(key, value, remedy)) <= 1.0:
        raise invalid(key, "must be in (0, 1]", value, remedy)
    return parsed


def flag(key: str, value: ParameterValue) -> bool:
    """True or false; the texts ``true`` and ``false`` and the numbers 1 and 0 are accepted."""
    named = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, bool):
        return value
    if (parsed := named.get(str(value).strip().lower())) is None:
        raise invalid(key, "must be true or false", value, "send a boolean")
    return parsed


def text(key: str, value: ParameterValue, remedy: str) -> str:
    """Non-empty text."""
    if not isinstance(value, str):
        raise invalid(key, "must be text", value, remedy)
    if not value:
        raise invalid(key, "must not be empty", value, remedy)
    return value
