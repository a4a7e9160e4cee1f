from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPWELL_PROFILE_DIR", str(tmp_path / "profiles"))
    return tmp_path / "profiles"


def test_it_measures_keeps_and_tells(stepwell, tiny, folder, tmp_path):
    plot = tmp_path / "new" / "costs.png"
    ran = stepwell("profile", tiny, "--threads", 1, "--plot", plot, "--json")
    assert ran.status == 0
    document = ran.document
    assert [str(path) for path in folder.iterdir()] == [document["path"]]
    assert (document["threads"], document["dtype"]) == (1, "float32")
    assert [ladder["name"] for ladder in document["ladders"]] == ["depth", "width"]
    for ladder in document["ladders"]:
        for point in ladder["points"]:
            assert 0.0 < point["decode_ms"] <= point["decode_together_ms"] < 16 * point["decode_ms"]
        assert ladder["points"][0]["prompt_ms"] < ladder["points"][-1]["prompt_ms"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "measured in" in ran.err
    assert f"kept as {document['path']}" in ran.err


def test_the_table_has_a_line_for_every_point(stepwell, tiny):
    ran = stepwell("profile", tiny, "--threads", 1)
    assert ran.status == 0
    lines = [line.split() for line in ran.out.splitlines()]
    points = [f"depth:{k}" for k in range(3)] + [f"width:{k}" for k in range(2)]
    assert [line[0] for line in lines if line and ":" in line[0]] == points


def test_the_ladder_shows_what_was_measured(stepwell, tiny):
    before = stepwell("ladder", tiny, "--threads", 1)
    assert "none measured on this machine" in before.out
    document = stepwell("ladder", tiny, "--threads", 1, "--json").document
    assert all(point["predicted"] is None for ladder in document["ladders"] for point in ladder["points"])
    measured = stepwell("profile", tiny, "--threads", 1, "--json").document
    document = stepwell("ladder", tiny, "--threads", 1, "--json").document
    for ladder, costs in zip(document["ladders"], measured["ladders"], strict=True):
        for point, cost in zip(ladder["points"], costs["points"], strict=True):
            assert point["predicted"] == {name: cost[name] for name in point["predicted"]}
    assert "decode 16, ms" in stepwell("ladder", tiny, "--threads", 1).out
    assert "decode 16, ms" not in stepwell("ladder", tiny, "--threads", 7).out


def test_what_cannot_be_measured_is_one_line(stepwell, tmp_path):
    assert "neither a directory" in stepwell("profile", "nested-ln").error
    ran = stepwell("profile", "nested-lm", "--threads", "0")
    assert ran.status == 2
    assert "--threads: must be >= 1, got 0" in ran.err
