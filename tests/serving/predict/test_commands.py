"""What the commands say of a model that answers as a whole."""

from __future__ import annotations

import pytest

from stepwell.serving.cli.main import main


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_PROFILE_DIR", str(tmp_path / "profiles"))


def test_profile_and_ladder(encoder, tmp_path, capsys) -> None:
    plot = tmp_path / "costs.png"
    assert main(["profile", str(encoder), "--threads", "1", "--plot", str(plot)]) == 0
    measured = capsys.readouterr()
    assert "1 or 16 texts of 48 tokens" in measured.out
    assert "kept as" in measured.err
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["ladder", str(encoder), "--threads", "1"]) == 0
    told = capsys.readouterr().out
    assert "encoder (encode)" in told
    assert "16 items, ms" in told
    rows = [line.split() for line in told.splitlines() if line.startswith(("depth:", "width:"))]
    assert [row[0] for row in rows] == ["depth:0", "depth:1", "depth:2", "width:0", "width:1"]
    costs = [float(row[-1]) for row in rows[:3]]
    assert 0.0 < costs[0] <= costs[1] <= costs[2]
