"""What whole steps take beyond the sum of their units, fitted to a few that are run for real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from stepwell.models.cache import PagedKVCache
from stepwell.models.decoder import Decoder
from stepwell.models.ladder import LadderSet
from stepwell.models.profiler import Case, Progress, no_progress, solve, timed
from stepwell.models.sampling import SamplingParams
from stepwell.models.unit_profile import UnitProfile
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Slice
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.engine.step import SequenceStep
from stepwell.serving.point_costs import made_up_slice
from stepwell.serving.runner import DecoderRunner
from stepwell.serving.step_costs import StepResidual, cost_model


@dataclass(frozen=True)
class TrialSequence:
    """One sequence of a step that is run only to be timed."""

    num_tokens: int
    start: int
    """Tokens in the cache before (whatever they are)."""
    point: OperatingPoint

    @property
    def slice(self) -> Slice:
        """As the cost model sees it."""
        return made_up_slice(self.point, self.num_tokens, self.start)


Trial = Sequence[TrialSequence]


class TrialRunner:
    """Runs made-up steps on a decoder, as the engine would. ``cache`` lends its free pages."""

    def __init__(self, decoder: Decoder, cache: PagedKVCache, ladders: LadderSet) -> None:
        self._runner, self._cache, self._ladders = DecoderRunner(decoder, cache), cache, ladders
        self._max_tokens = decoder.config.max_positions
        self._vocab_size = decoder.config.vocab_size

    def fits(self, trial: Trial) -> bool:
        """Whether there are pages for it, and positions."""
        pages = sum(self._cache.pages_for(self._ladders.subnet(t.point.name), t.start + t.num_tokens) for t in trial)
        return pages <= self._cache.free_pages and all(t.start + t.num_tokens <= self._max_tokens for t in trial)

    @contextmanager
    def prepared(self, trial: Trial) -> Iterator[Case]:
        """A call that runs the step, again and again; the pages are free afterwards."""
        steps: list[SequenceStep] = []
        for number, each in enumerate(trial):
            subnet, length = self._ladders.subnet(each.point.name), each.start + each.num_tokens
            pages = self._cache.open(subnet, expected_tokens=length)
            self._cache.reserve(pages, length)
            tokens = [(number + 7 * i) % self._vocab_size for i in range(each.num_tokens)]
            greedy = SamplingParams()
            steps.append(SequenceStep(str(number), tokens, each.start, each.point, subnet, pages, greedy, 0))
        try:
            yield lambda: self._runner.run(steps)
        finally:
            for step in steps:
                self._cache.free(step.pages)


def fit_residual(
    runner: TrialRunner,
    profile: UnitProfile,
    ladders: LadderSet,
    levels: Sequence[OperatingPoint],
    progress: Progress = no_progress,
) -> StepResidual:
    """Run decoding steps and prefill chunks at the levels of one ladder (smallest first), alone and mixed."""
    units = cost_model(profile, StepResidual(), ladders)
    with ExitStack() as pages:
        cases = {
            number: (trial, pages.enter_context(runner.prepared(trial)))
            for number, trial in enumerate(_trials(levels))
            if runner.fits(trial)
        }
        times = timed({number: case for number, (_, case) in cases.items()}, progress)
    if not cases:
        return StepResidual()
    seconds = [times[number] for number in cases]
    features = [_features(units, trial) for trial, _ in cases.values()]
    prices = solve(features, seconds)
    if not 0.5 <= prices[0] <= 2.0:  # too few trials, or a very noisy machine: trust the units
        rest = sorted(each - feature[0] for each, feature in zip(seconds, features, strict=True))
        return StepResidual(overhead_s=max(rest[len(rest) // 2], 0.0))
    return StepResidual(*prices)


def _features(units: StepCostModel, trial: Trial) -> tuple[float, ...]:
    """How often each field of :class:`StepResidual` is paid."""
    num_rows, num_points = sum(each.num_tokens for each in trial), len({each.point for each in trial})
    return units.raw_s([each.slice for each in trial]), 1.0, len(trial), num_rows, num_points - 1


def _trials(levels: Sequence[OperatingPoint]) -> Iterator[Trial]:
    """Steps of one kind each: decoding at one level, decoding at several, a prompt, several prompts, all at once."""
    low, middle, high = levels[0], levels[len(levels) // 2], levels[-1]
    for point in (low, high):
        yield from ([TrialSequence(1, 40, point)] * n for n in (1, 4, 16, 48))
        yield from ([TrialSequence(n, 0, point)] for n in (8, 48, 256))
        yield [TrialSequence(32, 16, point)] * 4
    yield from ([TrialSequence(1, 100, levels[k % len(levels)]) for k in range(n)] for n in (6, 16, 32))
    yield [TrialSequence(1, 100, point) for point in (low, high) for _ in range(8)]
    yield [TrialSequence(64, 0, middle), *(TrialSequence(1, 200, point) for point in (low, high) for _ in range(6))]
