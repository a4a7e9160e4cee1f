"""How well steps are predicted: ``python benchmarks/prediction.py``.

Random steps that the profile has not seen (levels mixed, prefill chunks, ragged contexts) run for real through the
decoder, each once, in random order. Every step is predicted with what the correction has learned from those before. In
the second half the machine is made to look half as fast: durations are doubled from then on. Then the same, without
that, for random batches of images (the shipped ``routed-vit``) and of texts (a BERT of three layers), points mixed.
What is left to chance is measured beside it: a few hundred of the steps, each run twice in a row.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from common import arguments, report
from one_shot_trials import ItemRunner, open_predictor, random_batch, save_encoder

from stepwell.models.loader import LoadedModel
from stepwell.schedulers.cost_model import StepCostModel, step_kind
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.calibration import Trial, TrialRunner, TrialSequence
from stepwell.serving.config import ModelConfig
from stepwell.serving.decoder_hosting import prepare, warm_up
from stepwell.serving.profiles import Profile, measure_profile, profile_key

NUM_WARM = 100
"""Steps that teach the correction before errors count."""
MAX_TOKENS = 512
NUM_REPEATED = 300


@dataclass(frozen=True)
class Timed:
    """A step that was run."""

    kind: str
    raw_s: float
    actual_s: float
    median_error: float
    """Of the corrected median, relative."""
    covered: bool
    """Whether it took no longer than the corrected 90th percentile."""


def random_trial(rng: random.Random, points: Sequence[OperatingPoint], context: int) -> Trial:
    """Up to 64 decoding sequences and, in half of the steps, up to four prefill chunks; at one, two or all levels."""
    chosen = rng.sample(points, rng.choice((1, 2, len(points))))
    mixed = rng.random() < 0.5
    num_decoding = rng.choice((0, 1, 2, 4, 8, 16, 32, 48) if mixed else (1, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64))
    longest = rng.choice((200, context - 1))
    trial = [TrialSequence(1, rng.randint(1, longest), rng.choice(chosen)) for _ in range(num_decoding)]
    room = MAX_TOKENS - num_decoding
    for _ in range(rng.choice((1, 1, 2, 4)) if mixed else 0):
        tokens = min(room, rng.randint(2, rng.choice((64, MAX_TOKENS))))
        if tokens > 1:
            start = rng.choice((0, 0, rng.randint(0, context - tokens)))
            trial.append(TrialSequence(tokens, start, rng.choice(chosen)))
            room -= tokens
    return trial


class Trials(Protocol):
    """Runs random steps of one kind."""

    def prepared(self, trial: Any) -> AbstractContextManager[Callable[[], object]]:
        """What runs the step."""


def run_trials(runner: Trials, model: StepCostModel, trials: Sequence[Sequence[Any]], slow_from: int) -> list[Timed]:
    """Run, predict, teach; from step ``slow_from`` on everything takes twice as long."""
    timed = []
    for number, trial in enumerate(trials):
        slices = [each.slice for each in trial]
        with runner.prepared(trial) as run:
            start = time.perf_counter()
            run()
            actual_s = (time.perf_counter() - start) * (2.0 if number >= slow_from else 1.0)
        error = abs(model.predict_s(slices) / actual_s - 1.0)
        covered = actual_s <= model.promise_s(slices)
        timed.append(Timed(step_kind(slices), model.raw_s(slices), actual_s, error, covered))
        model.expect(slices)(actual_s)
    return timed


def repeated(runner: Trials, trials: Sequence[Sequence[Any]]) -> float:
    """Median of how much longer or shorter a step takes when it is run again at once, relative."""

    def seconds(trial: Sequence[Any]) -> float:
        with runner.prepared(trial) as run:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

    return statistics.median([abs(seconds(trial) / seconds(trial) - 1.0) for trial in trials])


def recovery_steps(timed: Sequence[Timed], slow_from: int) -> int:
    """Steps after the slow-down until the last ten of them were predicted within 25 % in the median."""
    for count in range(10, len(timed) - slow_from):
        errors = [each.median_error for each in timed[slow_from + count - 10 : slow_from + count]]
        if statistics.median(errors) < 0.25:
            return count
    return len(timed)


def rows_of(timed: Sequence[Timed], name: str) -> list[list[str]]:
    """Of decoding and of mixed steps, and of both where there are both."""
    rows = []
    kinds = sorted({each.kind for each in timed})
    for kind in (*kinds, "all") if len(kinds) > 1 else ("all",):
        of_kind = [each for each in timed if kind in (each.kind, "all")]
        ratios = sorted(each.actual_s / each.raw_s for each in of_kind)
        errors = sorted(each.median_error for each in of_kind)
        rows.append(
            [
                name,
                kind,
                str(len(of_kind)),
                f"{ratios[len(ratios) // 2]:.2f}",
                f"{errors[len(errors) // 2]:.1%}",
                f"{errors[int(0.9 * len(errors))]:.1%}",
                f"{statistics.mean(each.covered for each in of_kind):.1%}",
            ]
        )
    return rows


def open_trials(model: str) -> tuple[LoadedModel, TrialRunner, dict[str, OperatingPoint], Profile]:
    """The model as it would be served, its operating points, and its profile, freshly measured."""
    config = ModelConfig(model, kv_cache_tokens=70 * 1024)
    loaded, cache, points = prepare(config)
    key = profile_key(loaded.path, loaded.decoder.dtype, config.packed_weights_ratio)
    profile = measure_profile(loaded, points, cache, key)
    warm_up(loaded.decoder, cache, loaded.ladders)
    return loaded, TrialRunner(loaded.decoder, cache, loaded.ladders), points, profile


def one_shot_rows(num_batches: int, rng: random.Random) -> list[list[str]]:
    """Of images and of texts; a fifth of the batches teach the correction before errors count."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_encoder(Path(folder))
        for name, source, count in (("images", "routed-vit", num_batches), ("texts", folder, num_batches // 2)):
            predictor, profile = open_predictor(ModelConfig(source))
            trials = [random_batch(rng, predictor) for _ in range(count)]
            model = profile.cost_model(predictor.files.ladders)
            timed = run_trials(ItemRunner(predictor), model, trials, count)
            rows += rows_of(timed[count // 5 :], name)
    return rows


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", default="nested-lm")
    parser.add_argument("--steps", type=int, default=800, help="before the slow-down, and as many after it")
    parser.add_argument("--batches", type=int, default=300, help="of images, and half as many of texts")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded, runner, points, profile = open_trials(options.model)
    default = sorted(point for point in points.values() if point.ladder == loaded.ladders.default)
    rng = random.Random(options.seed)
    trials = [random_trial(rng, default, loaded.config.max_positions) for _ in range(2 * options.steps)]
    trials = [trial for trial in trials if trial]
    slow_from = len(trials) // 2
    timed = run_trials(runner, profile.cost_model(loaded.ladders), trials, slow_from)
    steps = recovery_steps(timed, slow_from)
    chance = repeated(runner, trials[:NUM_REPEATED])
    rows = rows_of(timed[NUM_WARM:slow_from], "steady")
    rows += rows_of(timed[slow_from + 50 :], "from 50 steps after a slow-down to half speed")
    rows += one_shot_rows(options.batches, rng)
    report(
        "prediction",
        f"Predicted against actual duration of steps ({options.model}, ladder {loaded.ladders.default})",
        ["", "steps", "number", "actual / measured units", "median error", "p90 error", "p90 covers"],
        rows,
        f"Measuring the profile took {profile.measured_in_s:.1f} s. Each step runs once, with whatever else the "
        "machine does. Errors are those of the median as corrected before the step. The slow-down is made by doubling "
        "durations in mid-run; predictions had followed it (median error of ten steps below 25 %) after "
        f"{steps} steps. A step run again at once takes {chance:.1%} longer or shorter (median): if both runs are off "
        f"alike, nothing that is known before it can predict it to less than {chance / math.sqrt(2.0):.1%}.",
        options.save,
    )


if __name__ == "__main__":
    main()
