"""One generation as the protocols hand it to the data plane, and the reading of its sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from stepwell.models.sampling import SamplingParams
from stepwell.serving.errors import RequestError, Status, invalid
from stepwell.serving.parameters import Parameters, ParameterValue, flag, number, whole

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256

_TOKENS_REMEDY = "send the number of tokens to generate at most"


@dataclass(frozen=True)
class GenerateCall:
    """What a client asked for, free of any protocol's types. Exactly one of ``text`` and ``input_ids`` is set."""

    model: str
    text: str | None = None
    input_ids: Sequence[int] | None = None
    max_tokens: int | None = None
    """None = the model's default."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    lossless: bool = False
    """The output must be the full model's own: served at the full size."""
    parameters: Parameters = field(default_factory=dict)
    """SLO and operating point, as keys of interfaces; other known keys are ignored."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Call metadata, keys in lower case."""
    time_remaining_s: float | None = None
    """What is left of the client's deadline; None = no deadline."""
    wishes: Callable[[], Hashable] | None = field(default=None, compare=False, repr=False)
    """What the protocol recognises calls by that ask for the same, see :mod:`stepwell.serving.verdicts`."""


@dataclass(frozen=True)
class GenerationOptions:
    """The part of a :class:`GenerateCall` that says how to generate."""

    max_tokens: int | None
    sampling: SamplingParams
    stop: tuple[str, ...]
    ignore_eos: bool
    lossless: bool


def generation_options(parameters: Parameters, *, logprobs: bool = False) -> GenerationOptions:
    """Read the sampling keys of ``parameters``. Raises RequestError naming the key, the value and the remedy."""
    get = parameters.get
    max_tokens = get("max_tokens")
    return GenerationOptions(
        max_tokens=None if max_tokens is None else whole("max_tokens", max_tokens, 1, _TOKENS_REMEDY),
        sampling=sampling_params(
            temperature=number("temperature", get("temperature", 0.0), "send 0 for greedy or a number > 0"),
            top_k=whole("top_k", get("top_k", 0), 0, "send 0 for no limit or a number of tokens"),
            top_p=number("top_p", get("top_p", 1.0), "send a number in (0, 1]"),
            seed=whole("seed", get("seed", 0), 0, "send a whole number >= 0"),
            logprobs=logprobs,
        ),
        stop=stop_strings(get("stop")),
        ignore_eos=flag("ignore_eos", get("ignore_eos", False)),
        lossless=flag("lossless", get("lossless", False)),
    )


def sampling_params(*, temperature: float, top_k: int, top_p: float, seed: int, logprobs: bool) -> SamplingParams:
    """Build SamplingParams; values out of range become INVALID_ARGUMENT."""
    try:
        return SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, logprobs=logprobs)
    except ValueError as error:
        raise RequestError(Status.INVALID_ARGUMENT, str(error)) from error


def stop_strings(value: ParameterValue | None) -> tuple[str, ...]:
    """The ``stop`` parameter: one string, or several as a JSON array of strings. None = none."""
    if value is None:
        return ()
    remedy = "send one text, or several as a JSON array of texts"
    if not isinstance(value, str):
        raise invalid("stop", "must be text", value, remedy)
    strings: object = [value]
    if value.startswith("["):
        try:
            strings = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            strings = [value]
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise invalid("stop", "must be text or an array of texts", value, remedy)
    return check_stop(strings)


def check_stop(strings: Sequence[str]) -> tuple[str, ...]:
    """Refuse stop strings that are empty, too long or too many."""
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid("stop", f"at most {MAX_STOP_STRINGS} texts", len(strings), "send fewer")
    for item in strings:
        if not 0 < len(item) <= MAX_STOP_CHARS:
            raise invalid("stop", f"each text must have 1 to {MAX_STOP_CHARS} characters", item, "shorten or drop it")
    return tuple(strings)
