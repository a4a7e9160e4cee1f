"""The residual of whole steps, found again on a machine whose clock only the steps move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stepwell.models import profiler
from stepwell.models.unit_profile import AttendCosts, UnitProfile
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.serving.calibration import Trial, TrialRunner, TrialSequence, fit_residual
from stepwell.serving.config import ModelConfig
from stepwell.serving.decoder_hosting import prepare
from stepwell.serving.step_costs import StepResidual, cost_model

ROWS = (1, 512)
FLAT_US = {16: 20e-6, 48: 30e-6, 64: 35e-6}
UNITS = UnitProfile(
    rows=ROWS,
    norm_s=(1e-6, 2e-6),
    attention_s={2: (50e-6, 900e-6)},
    ffn_s={channels: (flat, 20 * flat) for channels, flat in FLAT_US.items()},
    attend={2: AttendCosts(60e-6, 3e-6, 1e-7, 40e-6, 1e-7, 1e-8)},
    output_s=(50e-6, 500e-6),
    shared_context=100,
)


class ModelledRunner:
    """Steps take what a cost model says, on the clock that is measured with."""

    def __init__(self, model: StepCostModel, scale: float = 1.0, max_sequences: int = 99) -> None:
        self.model, self.scale, self.max_sequences, self.now = model, scale, max_sequences, 0.0

    def perf_counter(self) -> float:
        return self.now

    def fits(self, trial: Trial) -> bool:
        return len(trial) <= self.max_sequences

    @contextmanager
    def prepared(self, trial: Trial) -> Iterator[Callable[[], None]]:
        def run() -> None:
            self.now += self.scale * self.model.raw_s([each.slice for each in trial])

        yield run


@pytest.fixture(scope="module")
def tiny_model(tiny: Path) -> Any:
    return prepare(ModelConfig(str(tiny), kv_cache_tokens=512, page_tokens=16))


def fitted(tiny_model: Any, runner: ModelledRunner, monkeypatch: pytest.MonkeyPatch) -> StepResidual:
    loaded, _, points = tiny_model
    monkeypatch.setattr(profiler, "time", runner)
    levels = [points[f"depth:{k}"] for k in range(3)]
    return fit_residual(runner, UNITS, loaded.ladders, levels)  # type: ignore[arg-type]


def test_the_residual_is_found_again(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = StepResidual(scale=1.2, overhead_s=4e-4, sequence_s=2e-5, row_s=1e-6, mixing_s=1e-4)
    found = fitted(tiny_model, ModelledRunner(cost_model(UNITS, truth, tiny_model[0].ladders)), monkeypatch)
    assert vars(found) == pytest.approx(vars(truth), rel=1e-6)


@pytest.mark.parametrize(("scale", "max_sequences"), [(9.0, 99), (0.1, 99), (1.0, 0)])
def test_where_no_fit_makes_sense_the_units_stand(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, scale: float, max_sequences: int
) -> None:
    model = cost_model(UNITS, StepResidual(), tiny_model[0].ladders)
    found = fitted(tiny_model, ModelledRunner(model, scale, max_sequences), monkeypatch)
    assert (found.scale, found.sequence_s, found.row_s, found.mixing_s) == (1.0, 0.0, 0.0, 0.0)
    assert (found.overhead_s > 0.0) == (scale > 1.0)


def test_real_steps_run_and_give_their_pages_back(tiny_model: Any) -> None:
    loaded, cache, points = tiny_model
    runner = TrialRunner(loaded.decoder, cache, loaded.ladders)
    trial = [TrialSequence(5, 0, points["depth:0"]), TrialSequence(1, 30, points["width:1"])]
    assert runner.fits(trial)
    with runner.prepared(trial) as run:
        assert cache.free_pages < cache.total_pages
        assert run() is not None
    assert cache.free_pages == cache.total_pages
    assert not runner.fits([TrialSequence(1, 256, points["depth:0"])]), "beyond the model's positions"
    assert not runner.fits([TrialSequence(200, 0, points["depth:2"])] * 3), "beyond the cache"
