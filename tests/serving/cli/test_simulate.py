"""``stepwell simulate``: the tables, the document, the picture, and what is refused."""

from __future__ import annotations

import pytest
from matplotlib import image

ROUGHLY = ["--profile", "default"]
FEW = [*ROUGHLY, "--synthetic", "gamma:rate=5,cv=3,prompt=60,output=4", "--requests", "60", "--load", "0.5,2"]


def test_the_document_has_every_policy_at_every_load(stepwell):
    ran = stepwell("simulate", *FEW, "--policies", "max_quality,fixed:min", "--json")
    assert ran.status == 0, ran.err
    document = ran.document
    assert [(run["policy"], run["load"]) for run in document["runs"]] == [
        ("max_quality", 0.5), ("max_quality", 2.0), ("fixed:min", 0.5), ("fixed:min", 2.0)]  # fmt: skip
    for run in document["runs"]:
        assert sum(run["summary"]["outcomes"].values()) == run["summary"]["num_sent"] == 60
        assert run["rate"] == pytest.approx(run["load"] * document["capacity"])
        assert set(run["summary"]["per_class"]) == {"tight", "normal", "relaxed"}
    best, small = document["runs"][0]["summary"], document["runs"][2]["summary"]
    assert best["mean_quality"] == 1.0 > small["mean_quality"]
    assert "max_quality at load 0.5: attainment" in ran.err
    assert stepwell("simulate", *FEW, "--policies", "max_quality,fixed:min", "--json").document == document


def test_a_busy_machine_serves_fewer(stepwell):
    around = ("--slowness", "2", "--step-ms", "1", "--call-ms", "3", "--token-ms", "0.5", "--toll-ms", "2")
    quiet = stepwell("simulate", *FEW, "--policies", "max_quality", "--json").document
    busy = stepwell("simulate", *FEW, "--policies", "max_quality", *around, "--json").document
    stated = {"slowness": 2.0, "step_s": 0.001, "call_s": 0.003, "token_s": 0.0005, "toll_s": 0.002}
    assert busy["surroundings"] == stated
    assert busy["capacity"] < quiet["capacity"] / 2
    refused = stepwell("simulate", *FEW, "--call-ms", "-1")
    assert refused.status == 2
    assert "--call-ms: must be >= 0" in refused.err


def test_a_trace_gives_tables_and_a_picture(stepwell, tmp_path):
    trace = tmp_path / "short.csv"
    lines = [f"2023-11-16 18:17:{second:02}.5,{900 * second},{5 * second}" for second in range(1, 60)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    picture = tmp_path / "out.png"
    ran = stepwell(
        "simulate", *ROUGHLY, "--trace", trace, "--policies", "max_quality", "--load", "0.5,1", "--replicas", "2",
        "--slo-class", "tight:1", "--slo-class", "relaxed:3", "--capacity", "20", "--plot", picture,
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert "short, 59 requests, simulated on nested-lm, 2 replicas; load 1 = 20 requests/s" in ran.out
    assert "to fit a context of 1024 tokens" in ran.out
    assert "classes: tight 25%, relaxed 75%" in ran.out
    rows = [line.split() for line in ran.out.splitlines() if line.startswith("max_quality")]
    assert [row[1] for row in rows[:2]] == ["0.5", "1"]
    assert [row[1:3] for row in rows[2:]] == [["0.5", "relaxed"], ["0.5", "tight"], ["1", "relaxed"], ["1", "tight"]]
    assert image.imread(picture).shape[1] > 1000


def test_images_are_simulated_like_everything_else(stepwell, tmp_path):
    picture = tmp_path / "out.png"
    few = [*ROUGHLY, "--model", "routed-vit", "--synthetic", "poisson:rate=5", "--requests", "60", "--load", "0.5,2"]
    ran = stepwell("simulate", *few, "--policies", "staircase,max_quality", "--plot", picture)
    assert ran.status == 0, ran.err
    assert "an item each, of 65 tokens" in ran.out
    assert "times an item at full quality" in ran.out
    header, _, first = next(part for part in ran.out.split("\n\n") if part.startswith("policy")).splitlines()[:3]
    assert " ".join(header.split()) == "policy load attained quality kept goodput/s p50 s p99 s refused worst"
    assert first.split()[0] == "staircase"
    assert image.imread(picture).shape[1] > 1000
    document = stepwell("simulate", *few, "--policies", "max_quality", "--json").document
    for run in document["runs"]:
        assert run["summary"]["num_sent"] == 60
        assert run["summary"]["mean_kept_ratio"] == 1.0
        assert set(run["summary"]["per_class"]) == {"tight", "normal", "relaxed"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trace", "none.csv"], ["none.csv: cannot be read"]),
        (["--synthetic", "burst:rate=1"], ["unknown kind, got 'burst'"]),
        ([*FEW, "--policies", "best"], ["policy: unknown, got 'best'", "max_quality"]),
        ([*FEW, "--model", "no-such-model"], ["no-such-model"]),
        ([*FEW, "--config", "none.yaml"], ["none.yaml"]),
    ],
)
def test_what_fails_says_why(stepwell, options, words):
    error = stepwell("simulate", *options).error
    assert all(word in error for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--trace", "--synthetic"]),
        (["--trace", "a", "--synthetic", "b"], ["not allowed with"]),
        ([*FEW, "--load", "1,0"], ["must be > 0"]),
        ([*FEW, "--load", "1,x"], ["--load"]),
        ([*FEW, "--replicas", "0"], ["--replicas: must be >= 1, got 0"]),
        ([*FEW, "--noise", "-1"], ["--noise: must be in [0, 2], got -1"]),
        ([*FEW, "--slo-class", "urgent:1"], ["--slo-class: unknown, got 'urgent'"]),
        ([*FEW, "--plot", "no/such/folder/a.png"], ["make it first"]),
    ],
)
def test_wrong_usage_ends_with_status_two(stepwell, options, words):
    ran = stepwell("simulate", *options)
    assert ran.status == 2
    assert all(word in ran.err for word in words)
