"""Output on its way to its readers: nothing lost, order kept, calls first, but not for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stepwell.serving.courier import AT_ONCE, HOLD_S, QUIET_S, Arrivals, Courier


class Turns:
    """An event loop that turns when told, and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.call_later(0.0, callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._due.append((self.now + delay_s, callback))

    def turn(self, after_s: float = 0.0) -> None:
        self.now += after_s
        ready = [callback for due_s, callback in self._due if due_s <= self.now]
        self._due = [entry for entry in self._due if entry[0] > self.now]
        for callback in ready:
            callback()

    @property
    def idle(self) -> bool:
        return not self._due


class Reader:
    def __init__(self) -> None:
        self.got: list[list[int]] = []

    def deliver(self, items: list[int]) -> None:
        self.got.append(items)


def courier() -> tuple[Turns, Arrivals, Courier[int]]:
    turns: Any = Turns()
    arrivals = Arrivals(lambda: turns.now)
    return turns, arrivals, Courier(turns, arrivals, lambda: turns.now)


def test_a_few_readers_a_turn_in_order() -> None:
    turns, _, carried = courier()
    readers = [Reader() for _ in range(3 * AT_ONCE - 1)]
    carried.bring([(reader, [1]) for reader in readers])
    for turn in range(1, 4):
        assert [len(reader.got) for reader in readers] == [int(i < turn * AT_ONCE) for i in range(len(readers))]
        turns.turn()
    turns.turn()
    assert turns.idle, "it does not turn for nothing"


def test_calls_that_come_go_first_but_not_for_longer_than_the_bound() -> None:
    turns, arrivals, carried = courier()
    reader = Reader()
    arrivals.came()
    carried.bring([(reader, [1])])
    assert not reader.got
    while turns.now + 0.001 < HOLD_S:
        arrivals.came()
        turns.turn(0.001)
        assert not reader.got
    carried.bring([(reader, [2])])
    arrivals.came()
    turns.turn(0.001)
    turns.turn(0.001)
    assert reader.got == [[1, 2]], "what came meanwhile is in the same piece"


def test_output_goes_out_as_soon_as_no_more_calls_come() -> None:
    turns, arrivals, carried = courier()
    reader = Reader()
    arrivals.came()
    carried.bring([(reader, [1])])
    turns.turn(QUIET_S)
    assert reader.got == [[1]]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=30))
def test_everything_arrives_once_and_in_order(events: list[tuple[int, int, bool]]) -> None:
    """``events``: items for a reader, milliseconds until the next, whether a call comes."""
    turns, arrivals, carried = courier()
    readers = [Reader() for _ in range(5)]
    for item, (number, wait_ms, comes) in enumerate(events):
        if comes:
            arrivals.came()
        carried.bring([(readers[number], [item])])
        turns.turn(wait_ms / 1e3)
    while not turns.idle:
        turns.turn(0.001)
    for number, reader in enumerate(readers):
        assert [i for items in reader.got for i in items] == [i for i, event in enumerate(events) if event[0] == number]
