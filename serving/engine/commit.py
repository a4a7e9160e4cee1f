"""After a step has run: progress is noted, tokens are streamed, what is complete ends, the step is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepwell.serving.engine import endings
from stepwell.serving.engine.backlog import Backlog
from stepwell.serving.engine.entry import Entry
from stepwell.serving.engine.observer import StepKind, StepObservation
from stepwell.serving.engine.outbox import Outbox
from stepwell.serving.engine.pages import PageKeeper
from stepwell.serving.engine.roster import Roster
from stepwell.serving.engine.step import SequenceStep, Step


class RunStep(NamedTuple):
    """A step that was run."""

    steps: Sequence[Step]
    outputs: Mapping[str, Any]
    """What the runner returned for each of ``steps`` that ``yields``."""
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

    def __init__(self, roster: Roster, keeper: PageKeeper, outbox: Outbox, backlog: Backlog) -> None:
        self._roster, self._keeper, self._outbox, self._backlog = roster, keeper, outbox, backlog

    def commit(self, run: RunStep) -> None:
        """All of it, in the order of the step."""
        seconds, predicted_s, ended_s = run.seconds, run.predicted_s, run.ended_s
        self._backlog.worked(seconds)  # before anybody finishes: it is part of what they took
        gaps: list[tuple[str, float]] = []
        for step in run.steps:
            entry = self._roster.get_running(step.request_id)
            self._advance(entry, step, seconds, predicted_s)
            if step.yields:
                if step.sample_index:
                    gaps.append((entry.request.slo.slo_class, ended_s - entry.last_token_s))
                self._take(entry, run.outputs[step.request_id], ended_s)
        self._outbox.step_finished(_observation(run, gaps))

    def _advance(self, entry: Entry, step: Step, seconds: float, predicted_s: float | None) -> None:
        request = entry.request
        request.computed_tokens += step.num_tokens
        entry.compute_s += seconds
        if predicted_s is not None:
            entry.predicted_s = (entry.predicted_s or 0.0) + predicted_s
        self._keeper.commit(entry, step.subnet, request.computed_tokens)

    def _take(self, entry: Entry, output: Any, now: float) -> None:
        event, reason = entry.receive(output, now)
        if event is not None and self._outbox.stream(entry, event, now) and reason is not None:
            self._outbox.finish(entry, endings.finished(reason), now)


def _observation(run: RunStep, gaps: Sequence[tuple[str, float]]) -> StepObservation:
    steps = run.steps
    num_decodes = sum([step.decodes for step in steps])
    kind: StepKind = "decode" if num_decodes == len(steps) else "mixed" if num_decodes else "prefill"
    return StepObservation(
        kind=kind,
        seconds=run.seconds,
        predicted_s=run.predicted_s,
        points=tuple([step.point.name for step in steps]),
        prefill_tokens=0 if kind == "decode" else sum([step.num_tokens for step in steps]) - num_decodes,
        generated_tokens=sum([isinstance(step, SequenceStep) and step.yields for step in steps]),
        cached_tokens=run.cached_tokens,
        inter_token_s=gaps,
    )
