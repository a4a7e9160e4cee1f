"""Random histories of a cache with real contents: every sequence always reads what its own history wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stepwell.models.cache import CacheSequence, OutOfPages, PagedKVCache
from stepwell.models.ladder import SubNetwork

SUBNETS = [
    SubNetwork((2, 2, 2), (8, 8, 8)),
    SubNetwork((2, 2, 0), (8, 8, 0)),
    SubNetwork((2, 1, 0), (8, 8, 0)),
    SubNetwork((2, 0, 0), (8, 0, 0)),
    SubNetwork((2, 2, 2), (4, 4, 4)),
    SubNetwork((2, 0, 2), (8, 8, 8)),
    SubNetwork((0, 0, 0), (8, 0, 0)),
]
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=9)
"""Of two kinds only, so that histories often meet."""


@dataclass(eq=False)
class Live:
    """A sequence, and what the cache must find in its pages."""

    seq: CacheSequence
    token_ids: list[int]
    units: list[SubNetwork]
    """What each token has run so far."""
    may_rise: bool = True
    """False once forked: what a backfill writes would be shared."""


def content(units: Sequence[SubNetwork], layer: int, head: int, token_ids: list[int], position: int) -> float:
    """Stands for a key: a number made of all that a real one depends on."""
    history = tuple(token_ids[: position + 1])
    below = tuple((ran.kv_groups[:layer], ran.ffn_channels[:layer]) for ran in units[: position + 1])
    return float(hash((history, layer, head, below)) % 2**50)


def risen(ran: SubNetwork, subnet: SubNetwork) -> SubNetwork:
    """What a token has run that ran ``ran`` and then, from its exit on, the layers of ``subnet``."""
    depth = ran.depth
    groups = ran.kv_groups[:depth] + subnet.kv_groups[depth:]
    return SubNetwork(groups, ran.ffn_channels[:depth] + subnet.ffn_channels[depth:])


class CacheMachine(RuleBasedStateMachine):
    """The model is the token list of every live sequence; the cache must agree with it after any calls."""

    @initialize(num_pages=st.integers(6, 120), page_tokens=st.integers(1, 5))
    def start(self, num_pages: int, page_tokens: int) -> None:
        self.cache = PagedKVCache(3, 2, 1, num_pages, page_tokens, torch.float64)
        self.keys = self.cache.keys.view(2, -1)  # [heads, slots]
        self.values = self.cache.values.view(2, -1)
        self.live: list[Live] = []

    def pick(self, data: st.DataObject) -> Live:
        return data.draw(st.sampled_from(self.live))

    @rule(subnet=st.sampled_from(SUBNETS), token_ids=TOKENS, expected=st.none() | st.integers(1, 20))
    def open(self, subnet: SubNetwork, token_ids: list[int], expected: int | None) -> None:
        seq = self.cache.open(subnet, expected)
        num_reused = self.cache.match_prefix(seq, token_ids)
        assert num_reused == seq.num_tokens < len(token_ids)
        self.live.append(Live(seq, token_ids[:num_reused], [subnet] * num_reused))
        self.extend(self.live[-1], token_ids[num_reused:], subnet)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), subnet=st.sampled_from(SUBNETS))
    def ask_again(self, data: st.DataObject, subnet: SubNetwork) -> None:
        self.open(subnet, [*self.pick(data).token_ids, 0], None)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token_ids=TOKENS)
    def append(self, data: st.DataObject, token_ids: list[int]) -> None:
        live = self.pick(data)
        self.extend(live, token_ids, live.units[-1] if live.units else live.seq.subnet)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token_ids=TOKENS, subnet=st.sampled_from(SUBNETS), reader=st.sampled_from(SUBNETS))
    def switch(self, data: st.DataObject, token_ids: list[int], subnet: SubNetwork, reader: SubNetwork) -> None:
        live = self.pick(data)
        held, needed = set(live.seq.subnet.kv_layers), set(subnet.kv_layers)
        if not (held <= needed or needed <= held):
            with pytest.raises(ValueError, match="leaves out layers"):
                self.cache.widen(live.seq, subnet)
            return
        may_run = live.may_rise or all(ran.depth >= subnet.depth for ran in live.units)
        if may_run and self.unchanged_if_out_of_pages(live.seq, lambda: self.cache.widen(live.seq, subnet)):
            self.extend(live, token_ids, subnet)
            self.open(reader, [*live.token_ids, 0], None)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), num_tokens=st.integers(0, 5))
    def reserve_only(self, data: st.DataObject, num_tokens: int) -> None:
        live = self.pick(data)
        self.reserve(live.seq, len(live.token_ids) + num_tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), child_ids=TOKENS, parent_ids=TOKENS)
    def fork_and_diverge(self, data: st.DataObject, child_ids: list[int], parent_ids: list[int]) -> None:
        live = self.pick(data)
        live.may_rise = False
        last = live.units[-1] if live.units else live.seq.subnet
        self.live.append(Live(self.cache.fork(live.seq), list(live.token_ids), list(live.units), False))
        self.reads_its_own_history()
        self.extend(self.live[-1], child_ids, last)
        self.extend(live, parent_ids, last)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        live = self.pick(data)
        length = data.draw(st.integers(0, len(live.token_ids)))
        del live.token_ids[length:], live.units[length:]
        self.cache.truncate(live.seq, length)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        live = self.pick(data)
        self.live.remove(live)
        self.cache.free(live.seq)

    def extend(self, live: Live, new: list[int], subnet: SubNetwork) -> None:
        """One engine step: reserve, backfill, write the new keys and values, commit."""
        seq, start = live.seq, len(live.token_ids)
        if not self.reserve(seq, start + len(new)):
            return
        live.token_ids += new
        before = live.units
        live.units = [ran if ran.depth >= subnet.depth else risen(ran, subnet) for ran in before] + [subnet] * len(new)
        slots = seq.all_slots(0, len(live.token_ids))
        for layer in subnet.kv_layers:
            row = seq.row_of(layer)
            assert np.array_equal(slots[row], seq.slots(row, 0, len(live.token_ids)))
            self.write(live, layer, [p for p, ran in enumerate(before) if ran.depth <= layer], slots[row])
            self.write(live, layer, range(start, len(live.token_ids)), slots[row])
        self.cache.commit(seq, live.token_ids, subnet)

    def write(self, live: Live, layer: int, positions: Sequence[int], slots: np.ndarray) -> None:
        written = {int(slots[position]) // live.seq.page_tokens for position in positions}
        assert all(not written & set(other.seq.table.ravel().tolist()) for other in self.live if other is not live)
        for position in positions:
            for head in range(live.units[position].kv_groups[layer]):
                key = content(live.units, layer, head, live.token_ids, position)
                self.cache.keys.flatten(1, 2)[head, slots[position], 0] = key
                self.cache.values.flatten(1, 2)[head, slots[position], 0] = -key

    def reserve(self, seq: CacheSequence, num_tokens: int) -> bool:
        done = self.unchanged_if_out_of_pages(seq, lambda: self.cache.reserve(seq, num_tokens), num_tokens)
        assert not done or seq.capacity >= num_tokens
        return done

    def unchanged_if_out_of_pages(self, seq: CacheSequence, call: Callable[[], None], num_tokens: int = 0) -> bool:
        before = (seq.table.tolist(), seq.num_tokens, self.cache.free_pages, self.cache.cached_pages)
        blocks = max(-(-num_tokens // seq.page_tokens), seq.num_blocks)
        try:
            call()
        except OutOfPages as caught:
            error = caught
        else:
            return True
        assert error.available == self.cache.free_pages < error.needed <= 3 * (blocks + 1)
        assert before == (seq.table.tolist(), seq.num_tokens, self.cache.free_pages, self.cache.cached_pages)
        return False

    @invariant()
    def reads_its_own_history(self) -> None:
        if not hasattr(self, "live"):
            return
        for live in self.live:
            seq, token_ids = live.seq, live.token_ids
            assert seq.num_tokens == len(token_ids) == len(live.units)
            slots = seq.all_slots(0, len(token_ids))
            for row, layer in enumerate(seq.subnet.kv_layers):
                for head in range(2):
                    ran = [p for p, units in enumerate(live.units) if head < units.kv_groups[layer]]
                    wanted = [content(live.units, layer, head, token_ids, p) for p in ran]
                    assert self.cache.keys.flatten(1, 2)[head, slots[row][ran], 0].tolist() == wanted
                    assert self.cache.values.flatten(1, 2)[head, slots[row][ran], 0].tolist() == [
                        -key for key in wanted
                    ]

    @invariant()
    def keeps_count(self) -> None:
        if not hasattr(self, "live"):
            return
        self.cache.check_integrity()
        held = {page for live in self.live for page in live.seq.table.ravel().tolist()}
        assert self.cache.free_pages == self.cache.total_pages - len(held)
        assert self.cache.usage_ratio == pytest.approx(len(held) / self.cache.total_pages)

    def teardown(self) -> None:
        for live in getattr(self, "live", []):
            self.cache.free(live.seq)
            self.cache.check_integrity()
        if hasattr(self, "cache"):
            assert self.cache.free_pages == self.cache.total_pages


CacheMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestCacheMachine = CacheMachine.TestCase
