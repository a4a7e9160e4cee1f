"""Running a step so that a failure ends only the requests that caused it.

A runner that knows the culprits names them in a :class:`~stepwell.serving.engine.step.StepError`. Otherwise what failed
together runs again in halves until the culprits stand alone. Writing the same keys and values twice is harmless, and
a token is a function of its own sequence, so the others lose nothing but time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepwell.serving.engine.step import Runner, Step, StepError

_log = logging.getLogger(__name__)


class Ran(NamedTuple):
    """What became of the sequences of a step; each is in one of the two groups."""

    steps: Sequence[Step]
    """Those that were computed."""
    outputs: Mapping[str, Any]
    """What the runner returned for each of ``steps`` that ``yields``, by request id."""
    failed: Sequence[Step] = ()
    at_once: bool = False
    """Nothing failed: all of it was one batch, so its duration says what such a batch costs."""


def run_isolating(runner: Runner, steps: Sequence[Step]) -> Ran:
    """Run ``steps`` in one batch, and what a failure leaves in doubt again in smaller ones."""
    try:
        outputs = runner.run(steps)
        if missing := [s.request_id for s in steps if s.yields and s.request_id not in outputs]:
            raise StepError(f"the runner returned nothing for {missing}", missing)
        return Ran(steps, outputs, at_once=True)
    except Exception as error:
        named = error.request_ids if isinstance(error, StepError) else frozenset()
        culprits = [step for step in steps if step.request_id in named or len(steps) == 1]
        _log.exception("a step of %d sequences failed because of %s", len(steps), _names(culprits) or "one of them")
    if not culprits:
        half = len(steps) // 2
        return _joined(run_isolating(runner, steps[:half]), run_isolating(runner, steps[half:]))
    innocent = [step for step in steps if step not in culprits]
    return _joined(Ran((), {}, culprits), run_isolating(runner, innocent) if innocent else Ran((), {}))


def _joined(first: Ran, second: Ran) -> Ran:
    return Ran([*first.steps, *second.steps], {**first.outputs, **second.outputs}, [*first.failed, *second.failed])


def _names(steps: Sequence[Step]) -> str:
    return ", ".join(step.request_id for step in steps)
