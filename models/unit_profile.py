"""What the units of a decoder cost on one machine, in seconds, as the profiler measured them.

Layers of the same sizes share a curve. A curve holds the seconds of one layer at each of ``rows``; between them
:func:`table` interpolates (the roofline is piecewise linear to a good approximation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Seconds = tuple[float, ...]
"""One number for each of :attr:`UnitProfile.rows`."""


@dataclass(frozen=True)
class AttendCosts:
    """Attention over cached keys in one layer, for some key-value head groups, without its projections."""

    shared_s: float
    """Of the padded call that decoding sequences of short contexts share, whoever is in it."""
    sequence_s: float
    """Per sequence in it."""
    key_s: float
    """Per key of a decoding sequence; in the shared call each has as many as the longest."""
    call_s: float
    """Per sequence with a call of its own."""
    row_s: float
    """Per token of a prefill chunk, above all appending its keys and values."""
    pair_s: float
    """Per (query, key) pair of a prefill chunk; the whole rectangle of queries and keys counts."""


@dataclass(frozen=True)
class UnitProfile:
    """All that the predictions of one decoder are made from."""

    rows: tuple[int, ...]
    """Numbers of tokens that curves were measured at, ascending from 1."""
    norm_s: Seconds
    """The norm before a sub-layer. Part of the two below."""
    attention_s: Mapping[int, Seconds]
    """By key-value head groups: norm, projections, rotary embedding and output product of attention."""
    ffn_s: Mapping[int, Seconds]
    """By channels: the feed-forward sub-layer."""
    attend: Mapping[int, AttendCosts]
    """By key-value head groups: the attention between the projections."""
    output_s: Seconds
    """Head and sampling, by sequences that sample."""
    shared_context: int
    """Decoding sequences of fewer keys share one padded call."""


def table(rows: Sequence[int], seconds: Sequence[float], length: int) -> list[float]:
    """Seconds for 0, 1, ..., ``length - 1`` rows: 0 for none, straight between and beyond measurements, never falling.

    Noise only ever adds: where few rows took longer than more, they are taken to need what the more needed.
    ``rows`` ascends from 1 and has at least two entries.
    """
    rising = list(seconds)
    for n in range(len(rising) - 2, -1, -1):
        rising[n] = min(rising[n], rising[n + 1])
    values = [0.0]
    segment = 0
    for n in range(1, length):
        while segment < len(rows) - 2 and n > rows[segment + 1]:
            segment += 1
        low, high = rows[segment], rows[segment + 1]
        slope = (rising[segment + 1] - rising[segment]) / (high - low)
        values.append(rising[segment] + slope * (n - low))
    return values
