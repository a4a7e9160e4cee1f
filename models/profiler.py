"""Measures what a decoder's units cost here and now: projections, FFN slices, attention over cached keys, the head.

Units, not batches: a model has few of them, and from their curves every mixed batch can be predicted. Each case runs
through all measured layers in turn, so that weights come from where they come from in a step. All cases take turns, so
that a machine's drift hits all alike, few rows before many, so that none finds the caches emptied by a larger one. Of
the repeats the lower quartile counts: what others on the machine add is for the online correction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stepwell.models.cache import CacheSequence, PagedKVCache
from stepwell.models.decoder import Decoder
from stepwell.models.kernels.attention import SHARED_CALL_BYTES, PagedAttention
from stepwell.models.ladder import LadderSet, SubNetwork
from stepwell.models.layers.blocks import DecoderLayer
from stepwell.models.layers.staircase import Span
from stepwell.models.packed import PackedBatch, PackedSequence
from stepwell.models.sampling import SamplingParams, sample
from stepwell.models.unit_profile import AttendCosts, Seconds, UnitProfile

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
REPEATS = 7
MAX_LAYERS = 8
"""Layers that a case runs through."""
BUDGET_S = 8.0
"""Seconds after which a busy or slow machine gets fewer repeats."""
Shape: TypeAlias = tuple[int, int, int]
"""Sequences, tokens that each runs, tokens that each has in the cache before."""
ATTEND_SHAPES: tuple[Shape, ...] = (
    *((n, 1, c) for n in (1, 4, 16) for c in (15, 127, 511)),
    *((n, 1, c) for n in (48,) for c in (15, 127)),
    *((1, q, s) for q in (4, 16, 64, 256) for s in (0, 128, 512)),
)
"""Shapes of attention to fit prices to; those for which there is no room are left out."""
SLOW_S = 0.5
"""A case this slow is not repeated, and none with more rows is measured."""

Progress = Callable[[int, int], None]
"""``(done, total)``: runs of cases."""
Case = Callable[[], object]


def no_progress(done: int, total: int) -> None:
    """For whoever does not watch."""


@torch.inference_mode()
def measure_units(
    decoder: Decoder, ladders: LadderSet, cache: PagedKVCache, progress: Progress = no_progress
) -> UnitProfile:
    """Measure every unit that some level of ``ladders`` runs. ``cache`` lends its free pages; a small one allows only
    short contexts. Prepare ``decoder`` for serving first."""
    units = _Units(decoder, cache)
    groups, channels = sizes(ladders, "kv_groups"), sizes(ladders, "ffn_channels")
    curves: dict[Hashable, Callable[[int], Case]] = {"norm": units.norm, "output": units.output}
    curves |= {("attention", g): units.attention(g) for g in groups}
    curves |= {("ffn", c): units.ffn(c) for c in channels}
    rows = _rows_in_time(list(curves.values()))
    cases: dict[Hashable, Case] = {(name, n): unit(n) for n in rows for name, unit in curves.items()}
    with units.open_pages() as pages:
        shapes = [shape for shape in ATTEND_SHAPES if pages.fit(shape)]
        cases |= {("attend", g, shape): pages.attend(g, shape) for g in groups for shape in shapes}
        seconds = timed(cases, progress)

    def curve(name: Hashable, layers: int = len(units.layers)) -> Seconds:
        return tuple(seconds[name, n] / layers for n in rows)

    def attend(g: int) -> AttendCosts:
        features = [_attend_features(shape, units.shared_context) for shape in shapes]
        return AttendCosts(*solve(features, [seconds["attend", g, shape] / len(units.layers) for shape in shapes]))

    return UnitProfile(
        rows=rows,
        norm_s=curve("norm"),
        attention_s={g: curve(("attention", g)) for g in groups},
        ffn_s={c: curve(("ffn", c)) for c in channels},
        attend={g: attend(g) for g in groups},
        output_s=curve("output", 1),
        shared_context=units.shared_context,
    )


def timed(cases: Mapping[Hashable, Case], progress: Progress = no_progress) -> dict[Hashable, float]:
    """Seconds of each case: the lower quartile of several runs, taken in turns. A first run warms up and tells which
    cases are too slow to repeat; no further turn begins after BUDGET_S."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in cases}
    began = time.perf_counter()
    for repeat in range(1 + REPEATS):
        if repeat > 1 and time.perf_counter() - began > BUDGET_S:
            break
        for number, (name, case) in enumerate(cases.items()):
            progress(repeat * len(cases) + number, (1 + REPEATS) * len(cases))
            if repeat and seconds[name][0] >= SLOW_S:
                continue
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    counted = {name: sorted(times[1:] or times) for name, times in seconds.items()}
    return {name: times[len(times) // 4] for name, times in counted.items()}


def solve(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Prices >= 0 of the features that explain ``seconds`` with the least relative error (least squares; features whose
    price would be negative are left out one by one)."""
    matrix = np.asarray(features, dtype=np.float64) / np.maximum(np.asarray(seconds), 1e-9)[:, None]
    prices = np.zeros(matrix.shape[1])
    kept = [i for i in range(matrix.shape[1]) if matrix[:, i].any()]
    while kept:
        scale = np.abs(matrix[:, kept]).max(axis=0)
        found = np.linalg.lstsq(matrix[:, kept] / scale, np.ones(len(matrix)), rcond=None)[0]
        if found.min() >= 0:
            prices[kept] = found / scale
            break
        kept.pop(int(found.argmin()))
    return [float(price) for price in prices]


def sizes(ladders: LadderSet, field: Literal["kv_groups", "ffn_channels"]) -> list[int]:
    """Unit counts of some level's sub-layer, and of the slices between neighbouring levels of a ladder."""
    found: set[int] = set()
    for ladder in ladders.ladders.values():
        below = (0,) * ladders.architecture.num_layers
        for level in ladder.levels:
            widths: tuple[int, ...] = getattr(level.subnet, field)
            found.update(widths)
            found.update(width - before for width, before in zip(widths, below, strict=True))
            below = widths
    return sorted(found - {0})


def _rows_in_time(curves: Sequence[Callable[[int], Case]]) -> tuple[int, ...]:
    """ROWS, as far as no unit gets too slow to repeat; at least two of them."""
    for count, rows in enumerate(ROWS):
        start = time.perf_counter()
        for unit in curves:
            unit(rows)()
        if time.perf_counter() - start > SLOW_S * len(curves) and count > 1:
            return ROWS[:count]
    return ROWS


def _attend_features(shape: Shape, shared_context: int) -> tuple[float, ...]:
    """How often each field of :class:`AttendCosts` is paid."""
    sequences, tokens, start = shape
    if tokens > 1:
        return 0, 0, 0, sequences, sequences * tokens, sequences * tokens * (start + tokens)
    keys = sequences * (start + 1)
    if start + 1 < shared_context:
        return 1, sequences, keys, 0, 0, 0
    return 0, 0, keys, sequences, sequences, 0


class _Units:
    """The parts of a decoder, each as a function of the number of rows."""

    def __init__(self, decoder: Decoder, cache: PagedKVCache) -> None:
        self.decoder, self.config, self.cache = decoder, decoder.config, cache
        self.layers: list[DecoderLayer] = list(decoder.model.layers)[:MAX_LAYERS]  # type: ignore[assignment]
        assert cache.keys is not None, "a cache without storage has nothing to measure"
        token_bytes = self.config.num_kv_heads * self.config.head_dim * cache.keys.element_size()
        self.shared_context = min(-(-SHARED_CALL_BYTES // token_bytes), self.config.max_positions + 1)
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Activations; zeros or ones would flatter some kernels."""
        return torch.randn(*shape, generator=self._generator).to(self.decoder.dtype)

    def norm(self, rows: int) -> Case:
        """The norm before a sub-layer."""
        x = self.normal(rows, self.config.hidden_size)
        return lambda: [layer.input_layernorm(x) for layer in self.layers]

    def attention(self, groups: int) -> Callable[[int], Case]:
        """The attention sub-layer with nothing between its projections."""

        def unit(rows: int) -> Case:
            x, spans = self.normal(rows, self.config.hidden_size), (Span(0, groups, rows),)
            rotary = self.decoder.rotary.at(torch.arange(rows) % self.config.max_positions, x.dtype)
            linear = self.decoder.linear

            def attend(layer: int, span: Span, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return q.flatten(1)

            return lambda: [
                layer.self_attn(x.clone(), layer.input_layernorm, spans, rotary, attend, linear)
                for layer in self.layers
            ]

        return unit

    def ffn(self, channels: int) -> Callable[[int], Case]:
        """The feed-forward sub-layer."""

        def unit(rows: int) -> Case:
            x, spans = self.normal(rows, self.config.hidden_size), (Span(0, channels, rows),)
            linear = self.decoder.linear
            return lambda: [
                layer.mlp(x.clone(), layer.post_attention_layernorm, spans, linear) for layer in self.layers
            ]

        return unit

    def output(self, sequences: int) -> Case:
        """Final norm, head and greedy sampling."""
        x, head = self.normal(sequences, self.config.hidden_size), (self.decoder.head, 0, self.config.vocab_size)
        params, indices = [SamplingParams()] * sequences, [0] * sequences
        linear, norm = self.decoder.linear, self.decoder.model.norm
        return lambda: sample(linear.rows(norm(x), [head])[0], params, indices)

    def open_pages(self) -> _Pages:
        """Pages for the sequences of ATTEND_SHAPES; a context manager."""
        rest = (0,) * (self.config.num_layers - len(self.layers))
        groups = (self.config.num_kv_heads,) * len(self.layers) + rest
        return _Pages(self, SubNetwork(groups, (0,) * self.config.num_layers))


class _Pages:
    """Cached sequences, shared by all cases. Measured is attention, without what a step does once for all layers."""

    def __init__(self, units: _Units, subnet: SubNetwork) -> None:
        self._units, self._subnet = units, subnet
        self._sequences: list[CacheSequence] = []

    def __enter__(self) -> _Pages:
        cache = self._units.cache
        for number in range(max(sequences for sequences, _, _ in ATTEND_SHAPES)):
            wanted = max(tokens + start for sequences, tokens, start in ATTEND_SHAPES if sequences > number)
            free = cache.free_pages // len(self._units.layers) * cache.page_tokens
            if room := min(wanted, free, self._units.config.max_positions):
                self._sequences.append(cache.open(self._subnet, expected_tokens=room))
                cache.reserve(self._sequences[-1], room)
        return self

    def __exit__(self, *error: object) -> None:
        for sequence in self._sequences:
            self._units.cache.free(sequence)

    def fit(self, shape: Shape) -> bool:
        """Whether there is room for such sequences."""
        sequences, tokens, start = shape
        return sequences <= len(self._sequences) and all(
            start + tokens <= min(each.capacity, self._units.config.max_positions)
            for each in self._sequences[:sequences]
        )

    def attend(self, groups: int, shape: Shape) -> Case:
        """Attention of one span of ``groups`` head groups."""
        sequences, tokens, start = shape
        units, rows = self._units, sequences * tokens
        packed = [
            PackedSequence([0] * tokens, start, self._subnet, pages, wants_logits=False)
            for pages in self._sequences[:sequences]
        ]
        attend = PagedAttention(units.config, PackedBatch.pack(packed, units.cache), units.decoder.scratch)
        span, heads = Span(0, groups, rows), groups * units.config.group_heads
        q, k, v = (units.normal(rows, count, units.config.head_dim) for count in (heads, groups, groups))
        return lambda: [attend(layer, span, q, k, v) for layer in range(len(units.layers))]
