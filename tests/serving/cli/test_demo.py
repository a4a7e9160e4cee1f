from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from matplotlib.image import imread

from stepwell.serving.cli import demo
from stepwell.serving.cli.demo_load import NUM_FAILING, mixed_load
from stepwell.serving.cli.demo_plot import save_plot
from stepwell.serving.cli.demo_run import run_demo
from stepwell.serving.hosting import open_in_thread
from stepwell.serving.runner import DecoderRunner


@pytest.fixture(scope="module")
def ran() -> SimpleNamespace:
    """One demonstration, and the operating points that really were in each call of the runner."""
    calls: list[tuple[int, frozenset[str]]] = []
    run = DecoderRunner.run

    def open_patient(config, observer):
        """In this process, where the runner can be watched; and with a policy that refuses nobody on a slow machine."""
        return open_in_thread(replace(config, policy="max_quality"), observer)

    def spy(self, steps):
        calls.append((len(steps), frozenset(step.point.name for step in steps)))
        return run(self, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderRunner, "run", spy)
        outcome = run_demo("nested-lm", 28, open_patient)
    return SimpleNamespace(outcome=outcome, document=demo.document(outcome), calls=calls)


def test_at_least_24_concurrent_requests_are_served_by_many_sub_networks(ran):
    found = ran.document["summary"]
    assert found["requests"] == 28
    assert found["met"] + found["missed"] == 28 - NUM_FAILING
    assert found["operating_points_served"] >= found["sub_networks_served"] >= 12
    assert found["most_sequences_in_step"] >= 20, "they run side by side"
    assert found["most_sub_networks_in_step"] >= 8, "different sub-networks share a packed batch"


def test_every_request_gets_what_it_asked_for(ran):
    served = [request for request in ran.document["requests"] if request["report"] is not None]
    assert any("operating_point" in request["asked"] for request in served)
    assert any("min_quality" in request["asked"] for request in served)
    for request in served:
        asked, report = request["asked"], request["report"]
        if pinned := asked.get("operating_point"):
            assert set(report["tokens_per_level"]) == {report["operating_point"]} == {pinned}
        assert report["quality"] >= asked.get("min_quality", 0.0)
        assert report["generated_tokens"] == asked["max_tokens"]
        assert sum(report["tokens_per_level"].values()) == report["generated_tokens"]
        assert report["operating_point"] in report["tokens_per_level"]


def test_met_and_missed_agree_with_the_times(ran):
    for request in ran.document["requests"]:
        report, due_ms = request["report"], request["due_ms"]
        if report is None:
            continue
        assert request["outcome"] == ("met" if report["slo_met"] else "missed")
        assert report["total_ms"] <= request["client_ms"]
        if due_ms is None:
            assert report["slo_met"]
        elif "slo_ms" in request["asked"]:
            assert report["slo_met"] == (report["total_ms"] <= due_ms)
        elif report["total_ms"] > due_ms:
            assert not report["slo_met"], "the last token was late"


def test_what_cannot_be_served_is_told_with_its_reason(ran):
    *_, contradiction, gone = ran.document["requests"]
    assert contradiction["outcome"] == "refused"
    assert contradiction["error"]["status"] == "INVALID_ARGUMENT"
    assert "min_quality" in contradiction["error"]["message"]
    assert gone["outcome"] == "expired"
    assert gone["error"]["status"] == "DEADLINE_EXCEEDED"


def test_the_steps_reported_are_those_the_runner_ran(ran):
    reported = [(step.num_sequences, step.points) for step in ran.outcome.steps]
    assert reported
    assert reported == ran.calls[-len(reported) :]


def test_ladders_that_meet_do_not_count_twice(ran):
    tops = [ladder.points[-1].name for ladder in ran.outcome.model.ladders if ladder.points[-1].cost == 1.0]
    assert len(tops) > 1
    assert ran.outcome.count_sub_networks(tops) == 1


def test_the_text_says_the_same(ran):
    table, found = demo.request_table(ran.outcome).splitlines(), ran.document["summary"]
    assert len(table) == 2 + 28
    for line, request in zip(table[2:], ran.document["requests"], strict=True):
        if request["report"] is not None:
            assert request["report"]["operating_point"] in line
        else:
            assert line.endswith(request["outcome"])
    assert f"{found['sub_networks_served']} different sub-networks" in demo.summary(ran.outcome)


def test_the_plot_is_a_picture_of_a_readable_size(ran, tmp_path):
    save_plot(ran.outcome, tmp_path / "demo.png")
    height, width, _ = imread(tmp_path / "demo.png").shape
    assert width >= 1200
    assert height >= 800


@pytest.mark.parametrize("num_requests", [4, 24, 60])
def test_the_load_is_mixed_whatever_its_size(ran, num_requests):
    wishes = mixed_load(ran.outcome.model, num_requests)
    assert len(wishes) == num_requests
    pins = [wish.operating_point for wish in wishes[:-NUM_FAILING] if wish.operating_point]
    sub_networks = {ran.outcome.sub_network_of[pin] for pin in pins}
    assert len(sub_networks) == min(len(pins), len(set(ran.outcome.sub_network_of.values())))
    if num_requests >= 24:
        assert {wish.slo_class for wish in wishes} == {None, "tight", "normal", "relaxed"}
        assert len({pin.partition(":")[0] for pin in pins}) >= 4
        assert len({wish.max_tokens for wish in wishes}) >= 4


def test_the_command_prints_a_table_and_saves_the_plot(stepwell, tmp_path):
    ran = stepwell("demo", "--requests", 5, "--out", tmp_path / "made")
    assert ran.status == 0, ran.err
    assert len(re.findall(r"^[0-4]  ", ran.out, re.MULTILINE)) == 5
    assert "5 requests at once over gRPC" in ran.out
    assert (tmp_path / "made" / "demo.png").stat().st_size > 10_000


def test_json_is_one_document(stepwell, tmp_path):
    ran = stepwell("demo", "--requests", 4, "--out", tmp_path, "--json")
    assert ran.status == 0, ran.err
    assert len(ran.document["requests"]) == 4
    assert ran.document["plot"] == str(tmp_path / "demo.png")


def test_a_bad_model_is_one_line(stepwell, tmp_path):
    assert "no-such-model" in stepwell("demo", "--model", "no-such-model", "--out", tmp_path).error
