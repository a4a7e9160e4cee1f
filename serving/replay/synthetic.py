"""Made-up arrivals: Poisson, gamma bursts, steps, a day's rise and fall. The same seed gives the same workload.

Lengths are log-normal with a given mean and coefficient of variation, prompt and output independent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from stepwell.serving.replay.workload import Arrival, Workload

_EVEN_CV = 1e-3
"""At most this, gaps count as even."""


@dataclass(frozen=True)
class Lengths:
    """How long requests are."""

    prompt_tokens: float = 256.0
    """Mean."""
    output_tokens: float = 64.0
    """Mean."""
    cv: float = 1.0
    """Standard deviation over mean, of both; 0 = all the same."""

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """Prompt and output tokens of one request, >= 1."""
        return _log_normal(rng, self.prompt_tokens, self.cv), _log_normal(rng, self.output_tokens, self.cv)


@dataclass(frozen=True)
class Process:
    """One kind of arrivals: the parameters it needs, what they are, and the times it makes of them."""

    parameters: Mapping[str, str]
    """Name -> unit."""
    times: Callable[..., Iterator[float]]
    """From a random generator and the parameters to endless times in seconds, ascending."""
    example: str


def poisson(rng: random.Random, rate: float) -> Iterator[float]:
    """Arrivals that know nothing of each other: ``rate`` a second on average."""
    return gamma(rng, rate, 1.0)


def gamma(rng: random.Random, rate: float, cv: float) -> Iterator[float]:
    """Gaps from a gamma distribution of coefficient of variation ``cv``: 1 = Poisson, more = bursts, 0 = even."""
    at_s = 0.0
    while True:
        yield at_s
        at_s += rng.gammavariate(cv**-2, cv**2 / rate) if cv > _EVEN_CV else 1.0 / rate


def steps(rng: random.Random, rates: Sequence[float], every: float) -> Iterator[float]:
    """Poisson at ``rates[0]`` for ``every`` seconds, then at ``rates[1]`` and so on, over and over."""
    return _thinned(rng, max(rates), lambda at_s: rates[int(at_s / every) % len(rates)])


def diurnal(rng: random.Random, low: float, high: float, period: float) -> Iterator[float]:
    """Poisson at a rate that swings between ``low`` and ``high``, from low to low in ``period`` seconds."""
    mean, swing = (high + low) / 2, (high - low) / 2
    return _thinned(rng, max(low, high), lambda at_s: mean - swing * math.cos(2 * math.pi * at_s / period))


PROCESSES = {
    "poisson": Process({"rate": "requests/s"}, poisson, "poisson:rate=5"),
    "gamma": Process({"rate": "requests/s", "cv": "of the gaps"}, gamma, "gamma:rate=5,cv=4"),
    "steps": Process({"rates": "requests/s", "every": "s"}, steps, "steps:rates=2/8/2,every=30"),
    "diurnal": Process({"low": "requests/s", "high": "requests/s", "period": "s"}, diurnal,
                       "diurnal:low=1,high=9,period=600"),
}  # fmt: skip
LENGTHS = {"prompt": "prompt_tokens", "output": "output_tokens", "length_cv": "cv"}
"""Optional parameters of all kinds -> field of :class:`Lengths`."""


def synthesize(spec: str, num_requests: int, seed: int = 0) -> Workload:
    """A workload from ``KIND:NAME=VALUE,...`` such as ``gamma:rate=5,cv=4,prompt=300,output=40``.

    ``prompt``, ``output`` (mean tokens) and ``length_cv`` may be left out, as may the name of a kind's first parameter.
    Raises ValueError naming the parameter, its value and the remedy.
    """
    kind, _, rest = spec.partition(":")
    if kind not in PROCESSES:
        raise ValueError(f"synthetic: unknown kind, got {kind!r}; use one of {sorted(PROCESSES)}")
    if num_requests < 1:
        raise ValueError(f"requests: must be >= 1, got {num_requests}; ask for at least one")
    process = PROCESSES[kind]
    values = _parameters(spec, rest, process)
    lengths = Lengths(**{name: values.pop(key)[0] for key, name in LENGTHS.items() if key in values})
    given = {name: value if name == "rates" else value[0] for name, value in values.items()}
    rng = random.Random(seed)
    times = islice(process.times(random.Random(f"{seed} times"), **given), num_requests)
    return Workload.of(spec, [Arrival(at_s, *lengths.draw(rng)) for at_s in times])


def _parameters(spec: str, text: str, process: Process) -> dict[str, list[float]]:
    """Values by name. Raises ValueError."""
    found: dict[str, list[float]] = {}
    for i, item in enumerate(text.split(",")):
        name, equals, value = item.rpartition("=")
        name = name.strip() if equals else next(iter(process.parameters)) if i == 0 else ""
        if name in found or name not in (*process.parameters, *LENGTHS):
            raise ValueError(
                f"synthetic: not a parameter of {spec.partition(':')[0]}, or given twice, got {item!r} in {spec!r}; "
                f"use {sorted(process.parameters)} and perhaps {sorted(LENGTHS)}, as in {process.example}"
            )
        found[name] = [_number(name, part) for part in value.split("/" if name == "rates" else "\0")]
        if name == "rates" and not max(found[name]):
            raise ValueError(f"synthetic: rates: all 0, got {value!r}; give at least one positive rate")
    if missing := [f"{name} ({unit})" for name, unit in process.parameters.items() if name not in found]:
        raise ValueError(f"synthetic: {', '.join(missing)} missing in {spec!r}; write e.g. {process.example}")
    return found


def _number(name: str, text: str) -> float:
    zero_allowed = name in ("cv", "length_cv", "rates", "low")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= 1e9 or (value == 0 and zero_allowed)):
        least = ">= 0" if zero_allowed else "> 0"
        raise ValueError(f"synthetic: {name}: must be a number {least} and at most 1e9, got {text!r}; give one")
    return value


def _thinned(rng: random.Random, most: float, rate_at: Callable[[float], float]) -> Iterator[float]:
    """A Poisson process of varying rate, by rejection (Lewis and Shedler 1979)."""
    at_s = 0.0
    while True:
        if rng.random() * most < rate_at(at_s):
            yield at_s
        at_s += rng.expovariate(most)


def _log_normal(rng: random.Random, mean: float, cv: float) -> int:
    variance = math.log1p(cv * cv)
    return max(1, round(rng.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))))
