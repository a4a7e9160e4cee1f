"""Random histories of a cache with real contents: every sequence always reads what its own history wrote."""

from __future__ import annotations

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


def content(subnet: SubNetwork, layer: int, head: int, token_ids: list[int], position: int) -> float:
    """Stands for a key: a number made of all that a real one depends on."""
    history = tuple(token_ids[: position + 1])
    return float(hash((history, layer, head, subnet.kv_groups[:layer], subnet.ffn_channels[:layer])) % 2**50)


class CacheMachine(RuleBasedStateMachine):
    """The model is the token list of every live sequence; the cache must agree with it after any calls."""

    @initialize(num_pages=st.integers(6, 60), page_tokens=st.integers(1, 5))
    def start(self, num_pages: int, page_tokens: int) -> None:
        self.cache = PagedKVCache(3, 2, 1, num_pages, page_tokens, torch.float64)
        self.keys = self.cache.keys.view(2, -1)  # [heads, slots]
        self.values = self.cache.values.view(2, -1)
        self.live: list[tuple[CacheSequence, list[int]]] = []

    def pick(self, data: st.DataObject) -> tuple[CacheSequence, list[int]]:
        return data.draw(st.sampled_from(self.live))

    @rule(subnet=st.sampled_from(SUBNETS), token_ids=TOKENS, expected=st.none() | st.integers(1, 20))
    def open(self, subnet: SubNetwork, token_ids: list[int], expected: int | None) -> None:
        seq = self.cache.open(subnet, expected)
        num_reused = self.cache.match_prefix(seq, token_ids)
        assert num_reused == seq.num_tokens < len(token_ids)
        self.live.append((seq, token_ids[:num_reused]))
        self.extend(seq, self.live[-1][1], token_ids[num_reused:])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token_ids=TOKENS)
    def append(self, data: st.DataObject, token_ids: list[int]) -> None:
        self.extend(*self.pick(data), token_ids)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), num_tokens=st.integers(0, 5))
    def reserve_only(self, data: st.DataObject, num_tokens: int) -> None:
        seq, token_ids = self.pick(data)
        self.reserve(seq, len(token_ids) + num_tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), child_ids=TOKENS, parent_ids=TOKENS)
    def fork_and_diverge(self, data: st.DataObject, child_ids: list[int], parent_ids: list[int]) -> None:
        seq, token_ids = self.pick(data)
        self.live.append((self.cache.fork(seq), list(token_ids)))
        self.reads_its_own_history()
        self.extend(*self.live[-1], child_ids)
        self.extend(seq, token_ids, parent_ids)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        seq, token_ids = self.pick(data)
        del token_ids[data.draw(st.integers(0, len(token_ids))) :]
        self.cache.truncate(seq, len(token_ids))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        seq, token_ids = self.pick(data)
        self.live.remove((seq, token_ids))
        self.cache.free(seq)

    def extend(self, seq: CacheSequence, token_ids: list[int], new: list[int]) -> None:
        """One engine step: reserve, write the new keys and values, commit."""
        if not self.reserve(seq, len(token_ids) + len(new)):
            return
        start = len(token_ids)
        token_ids += new
        slots = seq.all_slots(start, len(token_ids))
        written = set((slots // seq.page_tokens).ravel().tolist())
        assert all(not written & set(other.table.ravel().tolist()) for other, _ in self.live if other is not seq)
        for row, layer in enumerate(seq.subnet.kv_layers):
            assert np.array_equal(slots[row], seq.slots(row, start, len(token_ids)))
            for position, slot in enumerate(slots[row].tolist(), start):
                for head in range(seq.subnet.kv_groups[layer]):
                    key = content(seq.subnet, layer, head, token_ids, position)
                    self.cache.keys.flatten(1, 2)[head, slot, 0] = key
                    self.cache.values.flatten(1, 2)[head, slot, 0] = -key
        self.cache.commit(seq, token_ids)

    def reserve(self, seq: CacheSequence, num_tokens: int) -> bool:
        before = (seq.table.tolist(), seq.num_tokens, self.cache.free_pages, self.cache.cached_pages)
        blocks = max(-(-num_tokens // seq.page_tokens) - seq.num_blocks, 0)
        try:
            self.cache.reserve(seq, num_tokens)
        except OutOfPages as caught:
            error = caught
        else:
            assert seq.capacity >= num_tokens
            return True
        assert error.available == self.cache.free_pages < error.needed <= seq.num_rows * (blocks + 1)
        assert before == (seq.table.tolist(), seq.num_tokens, self.cache.free_pages, self.cache.cached_pages)
        return False

    @invariant()
    def reads_its_own_history(self) -> None:
        if not hasattr(self, "live"):
            return
        for seq, token_ids in self.live:
            assert seq.num_tokens == len(token_ids)
            slots = seq.all_slots(0, len(token_ids))
            for row, layer in enumerate(seq.subnet.kv_layers):
                for head in range(seq.subnet.kv_groups[layer]):
                    wanted = [content(seq.subnet, layer, head, token_ids, p) for p in range(len(token_ids))]
                    assert self.cache.keys.flatten(1, 2)[head, slots[row], 0].tolist() == wanted
                    assert self.cache.values.flatten(1, 2)[head, slots[row], 0].tolist() == [-key for key in wanted]

    @invariant()
    def keeps_count(self) -> None:
        if not hasattr(self, "live"):
            return
        self.cache.check_integrity()
        held = {page for seq, _ in self.live for page in seq.table.ravel().tolist()}
        assert self.cache.free_pages == self.cache.total_pages - len(held)
        assert self.cache.usage_ratio == pytest.approx(len(held) / self.cache.total_pages)

    def teardown(self) -> None:
        for seq, _ in getattr(self, "live", []):
            self.cache.free(seq)
            self.cache.check_integrity()
        if hasattr(self, "cache"):
            assert self.cache.free_pages == self.cache.total_pages


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCacheMachine = CacheMachine.TestCase
