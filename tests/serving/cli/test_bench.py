from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from matplotlib.image import imread

from stepwell.serving.cli import bench_target
from stepwell.serving.grpc.load_wire import LoadWire
from stepwell.serving.replay.child import ChildError, ChildServer

LOAD = ("--synthetic", "poisson:rate=100,prompt=6,output=4")


@pytest.fixture
def child_config(tiny, tmp_path):
    """A configuration for a server started here: the tiny model, its costs not measured."""
    path = tmp_path / "server.yaml"
    model = {"source": str(tiny), "kv_cache_tokens": 4096, "profile": "default"}
    path.write_text(json.dumps({"models": [model], "slo_classes": {"patient": {"deadline_ms": 60000}}}))
    return path


def test_json_has_everything(stepwell, shared, tmp_path):
    records, plot = tmp_path / "r.jsonl", tmp_path / "t.png"
    ran = stepwell(
        "bench", "--address", shared.address, "--model", "tiny", *LOAD, "--requests", 20, "--slo-class", "relaxed:3",
        "--slo-class", "normal", "--json", "--records", records, "--plot", plot,
    )  # fmt: skip
    assert ran.status == 0, ran.err
    found = ran.document
    assert set(found) == {
        "workload", "target", "summary", "latency", "latency_from_send", "refusals", "failures", "verdicts", "generator"
    }  # fmt: skip
    assert found["workload"]["requests"] == found["summary"]["num_sent"] == 20
    assert set(found["summary"]["per_class"]) == {"relaxed", "normal"}
    assert found["summary"]["outcomes"]["failed"] == 0
    assert found["target"]["vocab_size"] == 257, "asked of the server"
    assert found["verdicts"]["compared"] == found["summary"]["outcomes"]["met"] + found["summary"]["outcomes"]["missed"]
    assert set(found["latency"]["all"]["total_s"]) == {"p50", "p90", "p99", "p99.9"}
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["arrival"] for line in lines] == list(range(20))
    assert all(line["operating_point"] for line in lines if line["status"] == "OK")
    assert imread(plot).shape[1] >= 1200


def test_the_text_is_tables(stepwell, shared):
    ran = stepwell("bench", "--address", shared.address, "--model", "tiny", *LOAD, "--requests", 5, "--unary")
    assert ran.status == 0, ran.err
    assert "attainment" in ran.out
    assert "first token" in ran.out
    assert "sending 5 requests" in ran.err


def test_a_trace_is_cut_fitted_and_stretched(stepwell, shared, tmp_path):
    trace = tmp_path / "trace.csv"
    times = [f"2024-05-10 00:00:0{i}.0000000,{40 * (i + 1)},{100 * (i + 1)}" for i in range(8)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *times]))
    ran = stepwell(
        "bench", "--address", shared.address, "--model", "tiny", "--trace", trace, "--start", 2, "--requests", 5,
        "--load", 2, "--capacity", 10, "--duration", 0.18, "--slo-class", "default", "--json", "--unary",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    workload = ran.document["workload"]
    assert workload["requests"] == 4, "five from 2 s on, 50 ms apart, those before 180 ms"
    assert workload["rate"] == pytest.approx(20.0)
    assert any("context of 256" in note for note in workload["notes"])


def test_the_mix_of_classes():
    from stepwell.serving.cli.bench_options import class_shares
    from stepwell.serving.config import ServerConfig

    classes = ServerConfig().slo_classes
    assert class_shares(None, classes) == {"tight": 1.0, "normal": 1.0, "relaxed": 1.0}
    assert class_shares([("tight", 2.0), ("default", 1.0)], classes) == {"tight": 2.0, "default": 1.0}
    assert class_shares(None, {"default": classes["default"]}) == {"default": 1.0}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "--trace"),
        ((*LOAD, "--address", "localhost:1", "--load", "2"), "--capacity"),
        ((*LOAD, "--address", "localhost:1", "--policy", "fixed:max"), "--policy"),
        ((*LOAD, "--requests", "0"), "--requests: must be >= 1, got 0"),
        ((*LOAD, "--rate", "-1"), "must be > 0"),
        ((*LOAD, "--rate", "1", "--load", "1"), "not allowed with"),
        ((*LOAD, "--slo-class", "urgent:1"), "'urgent'"),
        ((*LOAD, "--slo-class", "tight:0"), "must be > 0"),
        ((*LOAD, "--quality", "1.5"), "must be in [0, 1]"),
        ((*LOAD, "--plot", "no/such/folder/t.png"), "no such folder"),
    ],
)
def test_contradictions_are_wrong_usage(stepwell, options, part):
    ran = stepwell("bench", *options)
    assert ran.status == 2
    assert part in ran.err


def test_failures_are_one_line(stepwell, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_target, "ANSWER_S", 0.3)
    assert "localhost:1" in stepwell("bench", "--address", "localhost:1", *LOAD).error
    assert "'absent'" in stepwell("bench", "--address", shared.address, "--model", "absent", *LOAD).error
    here = ("--address", shared.address, "--model", "tiny")
    assert "pareto" in stepwell("bench", *here, "--synthetic", "pareto:rate=3").error
    assert "cannot be read" in stepwell("bench", *here, "--trace", tmp_path / "none.csv").error
    assert "no-such-model" in stepwell("bench", "--model", "no-such-model", *LOAD).error


def test_without_an_address_a_server_is_started_and_stopped(stepwell, child_config, monkeypatch):
    children = []
    start = ChildServer.start
    monkeypatch.setattr(ChildServer, "start", lambda self: (children.append(self), start(self)))
    ran = stepwell(
        "bench", "--config", child_config, "--model", "tiny", *LOAD, "--requests", 8, "--threads", 1,
        "--policy", "fixed:min", "--load", 0.5, "--json", "--slo-as", "numbers",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert ran.document["summary"]["outcomes"]["met"] == 8
    assert ran.document["summary"]["mean_quality"] == 0.5, "the policy was passed on"
    assert "load 1 = " in ran.err
    (child,) = children
    assert child.exit_status == 0


def test_a_server_that_dies_in_the_middle_is_told(stepwell, child_config, monkeypatch):
    start, send, sent = ChildServer.start, LoadWire.send, []

    def start_doomed(child):
        start(child)

        def kill_before_the_20th(wire, message):
            sent.append(message)
            if len(sent) == 3 + 20:  # after the warm-up
                os.kill(child.pid, signal.SIGKILL)
            return send(wire, message)

        monkeypatch.setattr(LoadWire, "send", kill_before_the_20th)

    monkeypatch.setattr(ChildServer, "start", start_doomed)
    ran = stepwell(
        "bench", "--config", child_config, "--model", "tiny", "--synthetic", "gamma:rate=40,cv=0,prompt=6,output=4",
        "--requests", 40, "--json",
    )  # fmt: skip
    assert ran.status == 1
    assert "ended during the run (exit status -9)" in ran.err
    outcomes = ran.document["summary"]["outcomes"]
    assert sum(outcomes.values()) == ran.document["summary"]["num_sent"] == 40
    assert outcomes["met"] > 0
    assert ran.document["failures"]["UNAVAILABLE"]["count"] > 0


def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(ChildError, match="no-such-model"), ChildServer({"models": ["no-such-model"]}):
        pass
    child = ChildServer({"models": ["nested-lm"]}, start_s=0.05)
    with pytest.raises(ChildError, match="not ready within"):
        child.start()
    assert child.exit_status is not None, "nothing is left running"


def test_the_client_needs_no_torch():
    code = (
        "import sys; import stepwell.serving.cli.bench, stepwell.serving.replay.load_report, stepwell.serving.client; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
