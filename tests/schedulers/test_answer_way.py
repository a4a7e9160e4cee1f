"""What is planned with, from what the endpoint has measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.answer_way import BEYOND_S, FEWEST, MOST_S, UNKNOWN_S, WINDOW, AnswerWay


def test_nine_answers_in_ten_are_in_time() -> None:
    way = AnswerWay()
    way.observe([0.001] * 60 + [0.02] * 4)
    assert way.seconds == pytest.approx(0.001 + BEYOND_S)
    way.observe([0.02] * 4)
    assert way.seconds == pytest.approx(0.02 + BEYOND_S)


def test_a_few_answers_say_nothing() -> None:
    way = AnswerWay()
    way.observe([0.04] * (FEWEST - 1))
    assert way.seconds == UNKNOWN_S
    way.observe([0.04])
    assert way.seconds == pytest.approx(0.04 + BEYOND_S)


def test_what_was_long_ago_is_forgotten() -> None:
    way = AnswerWay()
    way.observe([0.04] * 1000)
    way.observe([0.0] * WINDOW)
    assert way.seconds == BEYOND_S


@given(st.lists(st.floats()))
def test_whatever_is_measured_makes_a_plan(ways_s) -> None:
    way = AnswerWay()
    way.observe(ways_s)
    assert 0.0 < way.seconds <= MOST_S
    assert math.isfinite(way.seconds)
