"""After a step has run: progress is noted, tokens are streamed, what is complete ends, the step is measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepwell.serving.engine import endings
from stepwell.serving.engine.backlog import Backlog
from stepwell.serving.engine.generation import Generation
from stepwell.serving.engine.observer import StepKind, StepObservation
from stepwell.serving.engine.outbox import Outbox
from stepwell.serving.engine.pages import PageKeeper
from stepwell.serving.engine.roster import Roster
from stepwell.serving.engine.step import SequenceStep

if TYPE_CHECKING:
    from stepwell.models.sampling import SampledToken


@dataclass(frozen=True)
class RunStep:
    """A step that was run."""

    steps: Sequence[SequenceStep]
    tokens: Mapping[str, SampledToken]
    """One for each of ``steps`` with ``sampling``."""
    cached_tokens: int
    """Saved by prefix reuse for those that started in it."""
    predicted_s: float | None
    started_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s


class Committer:
    """Commits steps, one after the other."""

    def __init__(
        self, roster: Roster, keeper: PageKeeper, outbox: Outbox, backlog: Backlog, eos_token_ids: Collection[int]
    ) -> None:
        self._roster, self._keeper, self._outbox, self._backlog = roster, keeper, outbox, backlog
        self._eos_token_ids = frozenset(eos_token_ids)

    def commit(self, run: RunStep) -> None:
        """All of it, in the order of the step."""
        self._backlog.worked(run.seconds)  # before anybody finishes: it is part of what they took
        gaps: list[tuple[str, float]] = []
        seconds, predicted_s, ended_s = run.seconds, run.predicted_s, run.ended_s
        for step in run.steps:
            generation = self._roster.get_running(step.request_id)
            self._advance(generation, step, seconds, predicted_s)
            if step.sampling is not None:
                if step.sample_index:
                    gaps.append((generation.request.slo.slo_class, ended_s - generation.last_token_s))
                self._take_token(generation, run.tokens[step.request_id], ended_s)
        self._outbox.step_finished(_observation(run, gaps))

    def _advance(self, generation: Generation, step: SequenceStep, seconds: float, predicted_s: float | None) -> None:
        request = generation.request
        request.computed_tokens += len(step.token_ids)
        generation.compute_s += seconds
        if predicted_s is not None:
            generation.predicted_s = (generation.predicted_s or 0.0) + predicted_s
        self._keeper.commit(generation, step.subnet, request.computed_tokens)

    def _take_token(self, generation: Generation, token: SampledToken, now: float) -> None:
        event, reason = generation.append(token, self._eos_token_ids, now)
        if self._outbox.stream(generation, event, now) and reason is not None:
            self._outbox.finish(generation, endings.finished(reason), now)


def _observation(run: RunStep, gaps: Sequence[tuple[str, float]]) -> StepObservation:
    decodes = [step.sample_index > 0 and len(step.token_ids) == 1 for step in run.steps]
    kind: StepKind = "decode" if all(decodes) else "mixed" if any(decodes) else "prefill"
    num_tokens = sum([len(step.token_ids) for step in run.steps])
    return StepObservation(
        kind=kind,
        seconds=run.seconds,
        predicted_s=run.predicted_s,
        points=tuple([step.point.name for step in run.steps]),
        prefill_tokens=num_tokens - sum(decodes),
        generated_tokens=sum([step.sampling is not None for step in run.steps]),
        cached_tokens=run.cached_tokens,
        inter_token_s=gaps,
    )
