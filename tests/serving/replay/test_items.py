"""Loads for models that answer as a whole, and their simulation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.serving.config import ServerConfig, SLOClass
from stepwell.serving.replay.items import (
    DEADLINE_FACTORS,
    ItemTokens,
    are_built_in,
    as_items,
    deadlines_note,
    item_classes,
    typical_tokens,
)
from stepwell.serving.replay.simulate import capacity, simulate
from stepwell.serving.replay.workload import Arrival, Workload

IMAGES, TEXTS = ItemTokens(10, 10), ItemTokens(1, 30)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500), st.integers(1, 50)), min_size=1, max_size=20),
    st.integers(1, 40),
    st.integers(0, 400),
)
def test_items_keep_their_times_and_fit_the_model(arrivals, least, room):
    workload = Workload.of("made", [Arrival(*a, prefix=(1, 2)) for a in arrivals])
    items = as_items(workload, ItemTokens(least, least + room))
    assert [a.at_s for a in items.arrivals] == [a.at_s for a in workload.arrivals]
    for before, after in zip(workload.arrivals, items.arrivals, strict=True):
        assert least <= after.prompt_tokens <= least + room
        assert after.output_tokens == 1
        assert after.prefix == ()
        if least <= before.prompt_tokens <= least + room:
            assert after.prompt_tokens == before.prompt_tokens


def test_what_was_done_is_noted(make_workload):
    workload = make_workload((0, 5, 9), (1, 20, 9), (2, 99, 9))
    assert as_items(workload, IMAGES).notes == ("an item each, of 10 tokens",)
    assert as_items(workload, TEXTS).notes == ("a text each, as long as the prompt; 1 of 3 clipped to 30 tokens",)
    assert typical_tokens(as_items(workload, TEXTS)) == 20


def test_deadlines_follow_from_what_an_item_takes():
    classes = item_classes(0.02)
    assert {name: c.deadline_ms for name, c in classes.items() if name != "default"} == {
        name: pytest.approx(20 * factor) for name, factor in DEADLINE_FACTORS.items()
    }
    assert classes["default"] == SLOClass()
    assert "tight 160 ms" in deadlines_note(classes)
    assert are_built_in(ServerConfig().slo_classes)
    assert not are_built_in(classes)


def test_an_item_takes_one_step_and_its_whole_time(make_setup, make_workload):
    """10 ms a step, 1 ms a token: the first runs alone, the two that come meanwhile together."""
    setup = make_setup(items=IMAGES)
    workload = as_items(make_workload((0.0, 3, 7), (0.005, 3, 7), (0.006, 3, 7)), IMAGES).with_classes({"relaxed": 1})
    replay = simulate(workload, setup)
    assert replay.num_steps == 2
    assert [r.total_s for r in replay.results] == pytest.approx([0.02, 0.02 + 0.03 - 0.005, 0.02 + 0.03 - 0.006])
    assert setup.model.item_s(10) == pytest.approx(0.02)
    for result in replay.results:
        assert (result.outcome, result.quality, result.kept_ratio) == ("met", 1.0, 1.0)
        assert (result.ttft_s, result.tpot_s) == (None, None)
        assert result.lateness_ratio == pytest.approx(result.total_s / 2.0)
    assert replay.summary.mean_kept_ratio == 1.0
    assert replay.summary.ttft_p99_s is None


def test_a_time_to_the_first_token_is_the_time_to_the_answer(make_setup, make_workload):
    """Of class tight 50 ms are asked; an item of 60 tokens takes 70."""
    late = as_items(make_workload((0.0, 60, 1)), ItemTokens(1, 100)).with_classes({"tight": 1})
    (result,) = simulate(late, make_setup(items=TEXTS)).results
    assert result.lateness_ratio == pytest.approx(0.07 / 0.05)
    assert result.outcome == "missed"


def test_load_1_is_a_full_step_after_another(make_setup, make_workload):
    """A step of five items of ten tokens takes 60 ms."""
    setup = make_setup(items=IMAGES, max_step_tokens=50, max_running=5)
    workload = as_items(make_workload(*((0.0, 1, 1) for _ in range(100))), IMAGES)
    assert capacity(workload, setup) == pytest.approx(5 / 0.06)


def test_an_overload_is_served_smaller_instead_of_late(make_setup, make_workload):
    workload = as_items(make_workload(*((0.01 * i, 1, 1) for i in range(200))), IMAGES).with_classes({"tight": 1})
    ours, rigid = (
        simulate(workload, make_setup(policy, items=IMAGES, max_step_tokens=20)).summary
        for policy in ("staircase", "max_quality")
    )
    assert ours.attainment > rigid.attainment
    assert ours.mean_quality < rigid.mean_quality == 1.0
    assert sum(ours.outcomes.values()) == 200
