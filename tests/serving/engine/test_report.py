"""Reports are truthful: each number against the virtual clock, where a step costs 1 ms + 0.1 ms a token."""

from __future__ import annotations

import pytest

from stepwell.serving.engine.events import Outcome


def report_of(world, request):
    world.run()
    return world.end(request).report


def test_times_add_up_to_what_the_clock_saw(make_world) -> None:
    world = make_world(max_running=1)
    first = world.submit([1, 2, 3], 2)
    second = world.submit([1, 2, 3], 3)
    report = report_of(world, second)
    first_ms = 1.3 + 1.1
    assert report.queue_ms == pytest.approx(first_ms)
    assert report.compute_ms == pytest.approx(1.3 + 2 * 1.1)
    assert report.total_ms == pytest.approx(first_ms + 3.5)
    assert report.ttft_ms == pytest.approx(first_ms + 1.3)
    assert report.tpot_ms == pytest.approx(1.1)
    assert (report.prompt_tokens, report.generated_tokens, report.tokens_per_level) == (3, 3, {"depth:2": 3})
    assert world.end(first).report.queue_ms == 0.0


def test_without_slo_finishing_is_meeting_it(make_world) -> None:
    world = make_world()
    report = report_of(world, world.submit(max_tokens=1))
    assert report.slo_met
    assert (report.slo_ms, report.worst_lateness_ms, report.predicted_ms, report.tpot_ms) == (None,) * 4


@pytest.mark.parametrize(
    ("slo", "lateness_ms"),
    [
        # Tokens come at 1.3, 2.4 and 3.5 ms.
        ({"ttft_s": 0.0014}, -0.1),
        ({"ttft_s": 0.0012}, 0.1),
        ({"ttft_s": 0.002, "tpot_s": 0.0008}, -0.1),
        ({"ttft_s": 0.0013, "tpot_s": 0.001}, 0.2),
        ({"tpot_s": 0.0012}, -0.1),
        ({"tpot_s": 0.001}, 0.2),
    ],
)
def test_the_cumulative_rule_decides_on_token_targets(make_world, slo, lateness_ms: float) -> None:
    world = make_world()
    request = world.submit([1, 2, 3], 3, **slo)
    report = report_of(world, request)
    assert report.worst_lateness_ms == pytest.approx(lateness_ms)
    assert report.slo_met == (lateness_ms < 0)
    assert world.end(request).outcome is (Outcome.MET if lateness_ms < 0 else Outcome.MISSED)


@pytest.mark.parametrize(("deadline_s", "met"), [(0.0036, True), (0.0034, False)])
def test_end_to_end_targets(make_world, deadline_s: float, met: bool) -> None:
    world = make_world()
    report = report_of(world, world.submit([1, 2, 3], 3, deadline_s=deadline_s))
    assert (report.slo_met, report.slo_ms) == (met, pytest.approx(deadline_s * 1e3))


def test_an_answer_after_the_hard_deadline_is_late(make_world) -> None:
    world = make_world()
    request = world.submit([1, 2, 3], 1, hard_s=0.001)  # the only step takes longer
    assert not report_of(world, request).slo_met
    assert world.end(request).outcome is Outcome.MISSED


def test_degraded_means_below_the_best_that_was_allowed(make_world, fake) -> None:
    world = make_world(num_pages=24, page_tokens=4)
    full, pinned = world.submit(), world.submit(points=["depth:0"])
    too_long = world.submit(max_tokens=40)  # 42 tokens do not fit at 3 layers, nor 2
    world.run()
    assert [world.end(r).report.degraded for r in (full, pinned, too_long)] == [False, False, True]
    assert [world.end(r).report.operating_point for r in (full, pinned, too_long)] == ["depth:2", "depth:0", "depth:1"]
    assert world.end(pinned).report.quality == fake.points["depth:0"].quality


def test_prediction_is_the_sum_over_its_steps(make_world) -> None:
    class HalfAMillisecondPerToken:
        def foresee(self, slices):
            predicted_s = 0.0005 * sum(s.num_tokens for s in slices)
            return predicted_s, lambda seconds: observed.append((predicted_s, seconds))

    observed: list[tuple[float, float]] = []
    world = make_world(cost_model=HalfAMillisecondPerToken())
    assert report_of(world, world.submit([1, 2, 3], 3)).predicted_ms == pytest.approx(0.5 * (3 + 1 + 1))
    assert [step.predicted_s for step in world.observer.steps] == [0.0015, 0.0005, 0.0005]
    assert observed == [(step.predicted_s, step.seconds) for step in world.observer.steps]


def test_gaps_between_tokens_are_observed_by_class(make_world) -> None:
    world = make_world()
    world.submit([1, 2, 3], 3, slo_class="tight")
    world.run()
    gaps = [gap for step in world.observer.steps for gap in step.inter_token_s]
    assert gaps == [("tight", pytest.approx(0.0011)), ("tight", pytest.approx(0.0011))]


def test_gauges(make_world) -> None:
    world = make_world(max_running=1, num_pages=30, page_tokens=4)
    for _ in range(3):
        world.submit([1, 2, 3], 2)
    engine = world.engine
    assert (engine.num_waiting, engine.num_running, engine.has_work, engine.backlog_s) == (3, 0, True, 0.0)
    world.step()
    assert (engine.num_waiting, engine.num_running, engine.cache_usage_ratio) == (2, 1, pytest.approx(0.1))
    world.step()
    assert engine.backlog_s == pytest.approx(2 * 2.4e-3), "two wait, one took 2.4 ms"
    world.run()
    assert (engine.num_waiting, engine.num_running, engine.cache_usage_ratio, engine.backlog_s) == (0, 0, 0.0, 0.0)
