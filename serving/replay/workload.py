"""What arrives when: the one description of load that the simulator and the load generator both replay.

A workload comes from a trace or a generator and is then cut to a window, fitted to a model's context, given SLO classes
and set to a rate. Each of these returns a new workload that says what was done to it in ``notes``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

PREFIX_BLOCK_TOKENS = 512
"""Tokens that one id of ``Arrival.prefix`` stands for in a trace (Mooncake's block)."""


@dataclass(frozen=True)
class Arrival:
    """One request to be sent."""

    at_s: float
    """Seconds after the workload's start."""
    prompt_tokens: int
    output_tokens: int
    """Tokens to generate, >= 1; the end-of-sequence token is ignored."""
    slo_class: str = "default"
    prefix: tuple[int, ...] = ()
    """Ids of the prompt's leading blocks of ``Workload.prefix_block_tokens``: arrivals with the same leading ids share
    that part of the prompt. Empty: it shares nothing."""


@dataclass(frozen=True)
class Workload:
    """Arrivals in order of time, the first at 0."""

    name: str
    arrivals: tuple[Arrival, ...]
    notes: tuple[str, ...] = ()
    """What was done to it, a sentence each."""
    prefix_block_tokens: int = PREFIX_BLOCK_TOKENS

    @classmethod
    def of(cls, name: str, arrivals: Sequence[Arrival]) -> Workload:
        """``arrivals`` in any order, on any clock. Raises ValueError if there are none."""
        return cls(name, _rebased(sorted(arrivals, key=lambda arrival: arrival.at_s), name))

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return self.arrivals[-1].at_s

    @property
    def rate(self) -> float:
        """Mean arrivals a second; inf if all come at once."""
        return (len(self) - 1) / self.span_s if self.span_s > 0 else math.inf

    def window(self, start_s: float = 0.0, duration_s: float = math.inf, num_requests: int | None = None) -> Workload:
        """The arrivals of ``[start_s, start_s + duration_s)``, at most ``num_requests``. Raises ValueError if none."""
        chosen = [arrival for arrival in self.arrivals if start_s <= arrival.at_s < start_s + duration_s]
        chosen = chosen[:num_requests]
        note = f"{len(chosen)} of {len(self)} requests, from {start_s:g} s on"
        return self._changed(_rebased(chosen, self.name), note if len(chosen) < len(self) else None)

    def at_rate(self, rate: float) -> Workload:
        """Times multiplied so that ``rate`` requests a second arrive on average: bursts stay bursts.

        Raises ValueError if the rate is not positive and finite or all arrive at once.
        """
        if not 0 < rate < math.inf:
            raise ValueError(f"rate: must be positive and finite, got {rate:g} requests/s; give requests a second")
        if self.span_s <= 0:
            raise ValueError(f"{self.name}: its {len(self)} requests arrive at once and have no rate; take more of it")
        factor = self.rate / rate
        arrivals = tuple(replace(arrival, at_s=arrival.at_s * factor) for arrival in self.arrivals)
        return self._changed(arrivals, f"times x {factor:.4g}, to {rate:.4g} requests/s")

    def at_once(self) -> Workload:
        """Everything arrives at time 0."""
        return self._changed(tuple(replace(a, at_s=0.0) for a in self.arrivals), "all requests arrive at once")

    def fitted(self, context_length: int, quantile: float = 0.95) -> Workload:
        """Lengths for a model of ``context_length`` tokens.

        One factor for prompts and outputs, at most 1, so that the given share of the requests fits as a whole; the
        others are clipped, first their prompt, down to half of the context. Lengths stay >= 1.
        """
        if context_length < 2:
            raise ValueError(f"context_length: must hold a prompt and an output token, got {context_length}; give >= 2")
        totals = sorted(arrival.prompt_tokens + arrival.output_tokens for arrival in self.arrivals)
        factor = min(1.0, context_length / totals[max(0, math.ceil(quantile * len(totals)) - 1)])
        arrivals = tuple(_fit(arrival, factor, context_length) for arrival in self.arrivals)
        clipped = sum(round(total * factor) > context_length for total in totals)
        note = f"lengths x {factor:.4g} to fit a context of {context_length} tokens, {clipped} of {len(self)} clipped"
        changed = factor < 1.0 or clipped > 0
        blocks = max(1, round(self.prefix_block_tokens * factor))
        return replace(self._changed(arrivals, note if changed else None), prefix_block_tokens=blocks)

    def with_lengths(self, lengths: Callable[[Arrival], tuple[int, int]], note: str) -> Workload:
        """Prompt and output tokens of each arrival as ``lengths`` has them; no prompt starts like another any more."""
        changed = ((arrival, *lengths(arrival)) for arrival in self.arrivals)
        arrivals = tuple(
            replace(arrival, prompt_tokens=prompt, output_tokens=output, prefix=())
            for arrival, prompt, output in changed
        )
        return self._changed(arrivals, note)

    def noted(self, note: str) -> Workload:
        """The same, with one more sentence about it."""
        return self._changed(self.arrivals, note)

    def with_classes(self, shares: Mapping[str, float], seed: int = 0) -> Workload:
        """SLO classes drawn at random, each with its share of the sum. Raises ValueError if no share is positive."""
        if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
            raise ValueError(f"slo classes: shares must be >= 0 and one positive, got {dict(shares)}; give NAME:SHARE")
        names = random.Random(seed).choices(list(shares), list(shares.values()), k=len(self))
        arrivals = tuple(replace(a, slo_class=name) for a, name in zip(self.arrivals, names, strict=True))
        total = sum(shares.values())
        mix = ", ".join(f"{name} {share / total:.0%}" for name, share in shares.items())
        return self._changed(arrivals, f"classes: {mix} (seed {seed})")

    def prompt_ids(self, number: int, vocab_size: int) -> tuple[int, ...]:
        """Token ids of the prompt of arrival ``number``: equal where prefixes are, else different from all others."""
        arrival = self.arrivals[number]
        shared = min(len(arrival.prefix) * self.prefix_block_tokens, arrival.prompt_tokens)
        ids: tuple[int, ...] = ()
        for block in arrival.prefix:
            if len(ids) >= shared:
                break
            ids += _block(block + 1, min(self.prefix_block_tokens, shared - len(ids)), vocab_size)
        return ids + _block(-number - 1, arrival.prompt_tokens - shared, vocab_size)

    def _changed(self, arrivals: tuple[Arrival, ...], note: str | None) -> Workload:
        return replace(self, arrivals=arrivals, notes=self.notes if note is None else (*self.notes, note))


def _rebased(arrivals: Sequence[Arrival], name: str) -> tuple[Arrival, ...]:
    if not arrivals:
        raise ValueError(f"{name}: no requests in it; take a larger window or another trace")
    start_s = arrivals[0].at_s
    return tuple(replace(arrival, at_s=arrival.at_s - start_s) for arrival in arrivals)


def _fit(arrival: Arrival, factor: float, context_length: int) -> Arrival:
    prompt, output = (max(1, round(n * factor)) for n in (arrival.prompt_tokens, arrival.output_tokens))
    prompt = min(prompt, max(context_length // 2, context_length - output))
    return replace(arrival, prompt_tokens=prompt, output_tokens=min(output, context_length - prompt))


def _block(key: int, num_tokens: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids that depend on ``key`` alone, each block of a key a prefix of the longer ones."""
    digits, rest = [int(key < 0)], abs(key)
    while rest:
        rest, digit = divmod(rest, vocab_size)
        digits.append(digit)
    ramp, num_more = _ramp(vocab_size, 1 << num_tokens.bit_length()), max(num_tokens - len(digits), 0)
    return (tuple(digits) + ramp[digits[1] : digits[1] + num_more])[:num_tokens]


@lru_cache(maxsize=32)
def _ramp(vocab_size: int, num_tokens: int) -> tuple[int, ...]:
    """Token ids 0, 1, 2, ... over and over; at least ``num_tokens`` from each of them on."""
    return tuple(i % vocab_size for i in range(vocab_size + num_tokens))
