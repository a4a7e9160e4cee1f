"""The engine: plan, run, commit. One thread, one model, every request at its own operating point.

The life of a request: ``submit`` (any thread) leaves it in the inbox; the next ``step`` takes it in; the policy lets
it wait, drops it, or gives it tokens of the step; its pages are reserved; the runner computes it together with its
batch-mates; its tokens go to its sink; when it ends, its pages are free again and its report is complete.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from stepwell.models.cache import PagedKVCache
from stepwell.models.ladder import LadderSet
from stepwell.schedulers.base import Policy
from stepwell.schedulers.plan import CostModel, Limits, Slice, StepPlan
from stepwell.schedulers.request import Request
from stepwell.serving.engine import endings
from stepwell.serving.engine.backlog import Backlog
from stepwell.serving.engine.commit import Committer, RunStep
from stepwell.serving.engine.events import Sink
from stepwell.serving.engine.inbox import Inbox
from stepwell.serving.engine.intake import accept
from stepwell.serving.engine.isolation import Ran, run_isolating
from stepwell.serving.engine.job import Job
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.engine.outbox import Outbox
from stepwell.serving.engine.pages import PageKeeper
from stepwell.serving.engine.roster import Roster
from stepwell.serving.engine.seating import Seating
from stepwell.serving.engine.step import Runner, Step
from stepwell.serving.errors import RefusedError

if TYPE_CHECKING:
    from stepwell.models.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class Engine:
    """Serves requests. ``submit``, ``cancel``, ``drain``, ``wait`` and the properties may be used from any thread;
    all else by one thread (see :class:`~stepwell.serving.engine.loop.EngineLoop`).

    Args:
        runner: runs the model.
        cache: its key-value pages; nobody else may use it.
        policy: decides each step.
        tokenizer: for streamed text and stop strings; None = token ids only.
        ladders: the model's sub-networks.
        limits: the same as the policy's.
        eos_token_ids: tokens that end an output.
        clock: seconds; the times of submitted requests are on it.
        cost_model: handed to the policy.
        observer: told about every step and every request that ended.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        cache: PagedKVCache,
        policy: Policy,
        tokenizer: Tokenizer | None,
        ladders: LadderSet,
        limits: Limits,
        eos_token_ids: Collection[int],
        clock: Callable[[], float] = time.monotonic,
        cost_model: CostModel | None = None,
        observer: EngineObserver | None = None,
    ) -> None:
        self.now = clock
        self._runner, self._policy, self._cost_model = runner, policy, cost_model
        self._tokenizer, self._limits, self._eos_token_ids = tokenizer, limits, frozenset(eos_token_ids)
        self._keeper = PageKeeper(cache, ladders)
        self._roster = Roster(self._keeper)
        self._inbox = Inbox()
        self._backlog = Backlog()
        self._outbox = Outbox(self._roster, self._inbox, self._backlog, observer)
        self._committer = Committer(self._roster, self._keeper, self._outbox, self._backlog)
        self._num_admitted_by = 0  # steps whose end admission reckons with
        self._renew_admission()

    def submit(self, job: Job, sink: Sink) -> None:
        """Take a request in; ``sink`` receives its events, the last one a FinishEvent.

        Raises RequestError: INVALID_ARGUMENT if it can never be served (the message names the field), UNAVAILABLE if
        the engine is draining; a RefusedError, RESOURCE_EXHAUSTED (with a retry hint) or DEADLINE_EXCEEDED, if the
        policy refuses it. Then the sink is never called.
        """
        entry, now = accept(job, sink, self._keeper, self._tokenizer, self._eos_token_ids), self.now()
        # Read before: admission may be made anew meanwhile, never the other way round.
        num_steps = self._num_admitted_by
        if (drop := self._inbox.submit(entry, now)) is not None:
            ending = endings.dropped(drop, now)
            self._outbox.refuse(entry, ending, now)
            assert ending.error is not None
            error, reason = ending.error, drop.reason.value
            raise RefusedError(error.code, error.message, error.retry_after_ms, reason, drop.missing_s, num_steps)

    def cancel(self, request_id: str) -> None:
        """End a request at the next step. Unknown and finished ids are ignored."""
        self._inbox.cancel(request_id)

    def step(self) -> bool:
        """Plan, run, commit. False if nothing can be done now: ``wait`` then, at most until ``next_expiry_s``."""
        now = self.now()
        self._take_in(now)
        if not len(self._roster):
            self._renew_admission()
            return False
        plan = self._plan(now)
        seating = Seating(self._roster, self._keeper, plan, now)
        if steps := seating.seat():
            self._renew_admission(plan)
            learn = plan.learn if plan.learn is not None and seating.as_planned else self._expect(steps)
            ran = self._run(steps)
            if ran.steps:
                self._committer.commit(
                    RunStep(ran.steps, ran.outputs, seating.cached_tokens, plan.predicted_s, now, self.now())
                )
            self._renew_admission()
            if ran.at_once:
                learn(self.now() - now)  # all of it: the next step cannot start before
        else:
            self._renew_admission()
        return bool(steps or plan.drops)

    def drain(self) -> None:
        """Refuse new requests from now on (UNAVAILABLE); those taken in go on."""
        self._inbox.close()

    def abandon(self) -> None:
        """End all requests (UNAVAILABLE): the server stops."""
        self._take_in(self.now())
        for entry in self._roster.members:
            self._outbox.finish(entry, endings.shut_down(), self.now())

    def fail_in_flight(self) -> None:
        """After an unexpected error in ``step``: end what was running, or else what was waiting, as failed (INTERNAL).

        So every error ends at least one request, and a request that breaks the engine cannot stop it for good.
        """
        for entry in self._roster.holders or self._roster.members:
            try:
                self._outbox.finish(entry, endings.failed(), self.now())
            except Exception:
                _log.exception("request %s: not cleanly ended", entry.request_id)

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until something was submitted, cancelled or drained since the last step, or ``timeout_s`` passed."""
        self._inbox.wait(timeout_s)

    @property
    def has_work(self) -> bool:
        """True if a submitted request is not over."""
        return self._inbox.num_known > 0

    @property
    def next_expiry_s(self) -> float:
        """Clock time at which the next request is to be dropped; ``inf`` if none ever is."""
        return self._roster.next_expiry_s()

    @property
    def waiting(self) -> list[Request]:
        """Requests taken in that hold no pages, in order of arrival."""
        return self._roster.waiting

    @property
    def running(self) -> list[Request]:
        """Requests that hold cache pages."""
        return self._roster.running

    @property
    def num_waiting(self) -> int:
        """Requests that wait, those included that the next step will take in."""
        return max(0, self._inbox.num_known - self._roster.num_running)

    @property
    def num_running(self) -> int:
        return self._roster.num_running

    @property
    def cache_usage_ratio(self) -> float:
        """Share of the cache pages that running requests hold, 0..1."""
        return self._keeper.usage_ratio

    @property
    def backlog_s(self) -> float:
        """Seconds the waiting requests will take, judged by those that finished lately; 0 before any did."""
        return self._backlog.seconds(self.num_waiting)

    def check_integrity(self) -> None:
        """Raise AssertionError if a cache page is lost, owned twice, or held by a request that does not run."""
        self._roster.check_integrity()

    def _take_in(self, now: float) -> None:
        arrived, cancelled = self._inbox.take()
        for entry in arrived:
            if self._roster.num_waiting < self._limits.max_waiting:
                self._roster.add(entry)
            else:
                ending = endings.queue_full(self._limits.max_waiting, self.backlog_s)
                self._outbox.finish(entry, ending, now)
        for request_id in cancelled:
            if (found := self._roster.find(request_id)) is not None:
                self._outbox.finish(found, endings.left(found.request, now), now)

    def _plan(self, now: float) -> StepPlan:
        """The policy's decision; what it drops is answered at once."""
        roster = self._roster
        plan = self._policy.plan(now, roster.waiting, roster.running, self._keeper.capacity(), self._cost_model)
        for drop in plan.drops:
            self._outbox.finish(roster.get(drop.request.request_id), endings.dropped(drop, now), now)
        return plan

    def _run(self, steps: Sequence[Step]) -> Ran:
        """Requests that fail end here."""
        ran = run_isolating(self._runner, steps)
        for step in ran.failed:
            self._outbox.finish(self._roster.get(step.request_id), endings.failed(), self.now())
        return ran

    def _expect(self, steps: Sequence[Step]) -> Callable[[float], None]:
        """What teaches the cost model how long ``steps`` took."""
        if self._cost_model is None:
            return lambda seconds: None
        ran = [Slice(self._roster.get(s.request_id).request, s.num_tokens, s.point) for s in steps]
        return self._cost_model.foresee(ran)[1]

    def _renew_admission(self, step: StepPlan | None = None) -> None:
        """``step``: what begins now."""
        roster = self._roster
        waiting, running = roster.waiting, roster.running
        self._inbox.admit_by(self._policy.admission(self.now(), waiting, running, self._cost_model, step))
        self._num_admitted_by = self._outbox.num_steps
