"""What the demonstration asks for: prompts, and requests whose needs differ in every way the server understands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stepwell.serving.client_types import ModelDescription, OperatingPoint
from stepwell.serving.config import SLOClass

PROMPTS = (
    "def main(argv=None):\n    parser = argparse.ArgumentParser(",
    "class LRUCache:\n    def __init__(self, maxsize):\n        self.maxsize = maxsize\n",
    "import os\nimport sys\n\ndef walk(top):\n    for name in os.listdir(",
    "def read_file(path):\n    with open(path, 'rb') as f:\n        return f.",
    "class TestQueue(unittest.TestCase):\n    def test_put(self):\n        self.assert",
    '    """Return the number of items in the list.',
    "try:\n    import ssl\nexcept ImportError:\n    ",
    "def __repr__(self):\n    return '<%s object at %#x>' % (",
    "async def connect(host, port):\n    loop = asyncio.",
    "for key, value in sorted(mapping.items()):\n    ",
    "    def __enter__(self):\n        return self\n\n    def __exit__(self, ",
    "def parse_header(line):\n    name, _, value = line.partition(':')\n    ",
    "if __name__ == '__main__':\n    ",
    "The following exceptions are used mostly as base classes for ",
    "while True:\n    data = sock.recv(1024)\n    if not data:\n        ",
    "@property\ndef name(self):\n    return self._",
    "raise ValueError('expected a positive integer, got ",
    "def quicksort(items):\n    if len(items) <= 1:\n        return items\n    pivot = items[0]\n    ",
)
LENGTHS = (32, 64, 24, 48, 96, 40)
NUM_FAILING = 2
"""Requests at the end that cannot be served."""


@dataclass(frozen=True)
class Wish:
    """One request. None = not asked for."""

    prompt: str
    max_tokens: int
    slo_ms: float | None = None
    slo_class: str | None = None
    operating_point: str | None = None
    min_quality: float | None = None
    timeout_s: float | None = None
    """The client hangs up after this time: the call's gRPC deadline."""

    def options(self) -> dict[str, Any]:
        """Arguments of :meth:`~stepwell.serving.client.Client.generate` beside the prompt, without those unset."""
        return {key: value for key, value in asdict(self).items() if key != "prompt" and value is not None}

    def due_ms(self, classes: Mapping[str, SLOClass], num_tokens: int) -> float | None:
        """When the last of ``num_tokens`` tokens is due, since arrival; None if no latency was asked for."""
        if self.slo_ms is not None:
            return self.slo_ms
        asked = classes[self.slo_class] if self.slo_class else SLOClass()
        if asked.ttft_ms is None or asked.tpot_ms is None:
            return asked.deadline_ms
        return asked.ttft_ms + asked.tpot_ms * (num_tokens - 1)

    def first_due_ms(self, classes: Mapping[str, SLOClass]) -> float | None:
        """When the first token is due, since arrival; None if nothing was asked of it."""
        return classes[self.slo_class].ttft_ms if self.slo_class else None

    def deadline(self, classes: Mapping[str, SLOClass]) -> str:
        """What was asked of latency, in milliseconds, in a few words."""
        if self.timeout_s is not None:
            return f"gone after {self.timeout_s * 1e3:.0f}"
        if self.slo_ms is not None:
            return f"{self.slo_ms:.0f}"
        if self.slo_class is None:
            return "-"
        asked = classes[self.slo_class]
        return f"{self.slo_class} {asked.ttft_ms:.0f}+{asked.tpot_ms:.0f}/token"

    def size(self) -> str:
        """What was asked of the sub-network, in a few words."""
        wishes = [] if self.operating_point is None else [f"at {self.operating_point}"]
        if self.min_quality is not None:
            wishes.append(f"q >= {self.min_quality:g}")
        return ", ".join(wishes) or "-"


_PIN = "pin"
_NEEDS: Sequence[Mapping[str, Any]] = (
    {_PIN: True, "slo_class": "tight"},
    {_PIN: True},
    {"slo_class": "relaxed"},
    {_PIN: True, "slo_class": "normal"},
    {"min_quality": 0.95, "slo_class": "normal"},
    {_PIN: True, "slo_ms": 3000.0},
    {_PIN: True, "slo_class": "relaxed"},
    {},
    {_PIN: True, "slo_ms": 1500.0},
    {_PIN: True},
    {"min_quality": 0.98, "slo_ms": 6000.0},
    {_PIN: True, "slo_class": "normal"},
)
"""Repeated over the requests; those with a pin each get another operating point."""


def mixed_load(model: ModelDescription, num_requests: int) -> list[Wish]:
    """``num_requests`` requests, the last two of which cannot be served: one contradicts itself, one hangs up early."""
    needs = list(itertools.islice(itertools.cycle(_NEEDS), num_requests - NUM_FAILING))
    pins = _spread([point for ladder in model.ladders for point in ladder.points], sum(_PIN in need for need in needs))
    prompts, lengths = itertools.cycle(PROMPTS), itertools.cycle(LENGTHS)
    wishes = []
    for need in needs:
        asked = {key: value for key, value in need.items() if key != _PIN}
        if _PIN in need:
            asked["operating_point"] = next(pins).name
        wishes.append(Wish(next(prompts), next(lengths), **asked))
    smallest = min((point for ladder in model.ladders for point in ladder.points), key=lambda point: point.quality)
    wishes.append(Wish(next(prompts), next(lengths), operating_point=smallest.name, min_quality=1.0))
    wishes.append(Wish(next(prompts), model.context_length // 2, timeout_s=0.3, operating_point="max"))
    return wishes


def _spread(points: Sequence[OperatingPoint], count: int) -> Iterator[OperatingPoint]:
    """``count`` points evenly spread over the costs on offer, cheap and dear ones in turn.

    Ladders meet: of points with the same cost and quality one is taken.
    """
    different = {(point.cost, point.quality): point for point in reversed(points)}  # the first name of each wins
    ascending = [different[key] for key in sorted(different)]
    chosen = [ascending[i * (len(ascending) - 1) // max(count - 1, 1)] for i in range(count)]
    half = (count + 1) // 2
    for low, high in itertools.zip_longest(chosen[:half], reversed(chosen[half:])):
        yield low
        if high is not None:
            yield high
