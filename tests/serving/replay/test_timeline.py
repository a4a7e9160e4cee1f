from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from stepwell.serving.replay import timeline
from stepwell.serving.replay.outcomes import OUTCOMES, RequestResult
from stepwell.serving.replay.timeline import running_mean, save_timeline


def result(number: int, outcome: str, ratio: float | None = 0.5) -> RequestResult:
    served = outcome in ("met", "missed")
    quality = 0.9 if served else 0.0
    return RequestResult(number, 0.1 * number, "tight", outcome, quality, 0.2, lateness_ratio=ratio if served else None)


@pytest.mark.parametrize(
    "results",
    [
        [result(i, OUTCOMES[i % len(OUTCOMES)]) for i in range(60)],
        [result(0, "met")],
        [result(i, "failed") for i in range(5)],
        [result(i, "met", None) for i in range(5)],
    ],
    ids=["all outcomes", "one request", "nothing served", "nothing asked"],
)
def test_it_is_a_picture_of_a_readable_size(results, tmp_path):
    save_timeline(results, tmp_path / "timeline.png", "made")
    height, width, _ = imread(tmp_path / "timeline.png").shape
    assert width >= 1200
    assert height >= 800


def test_every_request_is_in_the_load_and_every_miss_is_marked(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(timeline, "Figure", lambda **options: figures.append(Figure(**options)) or figures[-1])
    results = [result(i, OUTCOMES[i % len(OUTCOMES)], 1.5 if i % len(OUTCOMES) else 0.5) for i in range(60)]
    save_timeline(results[::-1], tmp_path / "timeline.png", "made")
    load, quality, latency = figures[0].axes
    width_s = load.patches[0].get_width()
    assert sum(patch.get_height() * width_s for patch in load.patches) == pytest.approx(60)
    marks = {line.get_label(): len(line.get_xdata()) for axes in (quality, latency) for line in axes.lines}
    assert marks["each request"] == 20
    assert marks["missed"] == marks["tight, met"] == marks["shed"] == marks["expired"] == marks["failed"] == 10


@given(st.lists(st.floats(0.0, 1.0), max_size=60), st.integers(1, 20))
def test_the_running_mean_is_the_mean_of_the_latest(values, width):
    means = running_mean(values, width)
    assert len(means) == len(values)
    for i, mean in enumerate(means):
        latest = values[max(0, i - width + 1) : i + 1]
        assert mean == pytest.approx(sum(latest) / len(latest), abs=1e-9)
