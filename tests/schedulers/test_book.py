"""The book's running sums against sums made from scratch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.schedulers.book import SHARE, Book, overrun_alone_s
from stepwell.schedulers.correction import PACE_DOUBT
from stepwell.schedulers.demand import Demand
from stepwell.schedulers.fill import longest_s
from stepwell.schedulers.pace import MAX_CHECKS, bill, limited_spans
from stepwell.schedulers.plan import Limits, Slice
from stepwell.schedulers.prices import PriceLists
from stepwell.schedulers.roll import standing, work_of
from stepwell.schedulers.work import CONTEXT, PROMPT_DUE_S, TOKENS, check_times

NOW = 0.5


class Reference:
    """The definition: everything is summed anew, at the same instants."""

    def __init__(self, members, now, model, prices, limits) -> None:
        self.prices, self.limits, self.spread = prices, limits, model.correction.overall
        self.begun = [r for r in members if r.phase.name == "RUNNING" or r.generated_tokens]
        self.fresh = [r for r in members if r not in self.begun]
        self.step_s = longest_s(prices, len(self.begun), self.spread.upper)
        self.fixed_s = prices.fixed_s(len(self.begun) + 1)[0]
        self.times = check_times(self.work(), now, MAX_CHECKS)

    def work(self, *more):
        return work_of([standing(r)[1] for r in self.begun], [*self.fresh, *more])

    def due(self, times, requests):
        """Seconds of a subset of everybody, without fixed parts, and steps."""
        begun = [r for r in requests if r in self.begun]
        fresh = [r for r in requests if r not in self.begun]
        work = work_of([standing(r)[1] for r in begun], fresh)
        longest = max([r.known_tokens for r in self.begun], default=0)
        spans = limited_spans([*begun, *fresh], self.prices, len(begun))
        charged = bill(self.prices, work, spans, 1, longest, self.limits)
        demand = Demand(work, times)
        return demand.seconds(charged.token_s[:1], charged.prompt_s[:1])[:, 0], demand.num_steps()

    def overrun_s(self, request, start_s) -> float:
        own = work_of([], [request])
        times = np.concatenate((self.times, check_times(own, -math.inf, MAX_CHECKS)))
        everybody = [*self.begun, *self.fresh]
        due_s, steps = self.due(times, everybody) if everybody else (0.0, 0.0)
        own_s, own_steps = self.due(times, [request])
        over_s = self.seconds(due_s + own_s + np.maximum(steps, own_steps) * self.fixed_s)
        over_s = (over_s - SHARE * (times - start_s))[(own_s > 0.0) | (own_steps > 0.0)]
        return max(over_s.max(initial=-math.inf), self.seat_overrun_s(request, start_s))

    def seat_overrun_s(self, request, start_s) -> float:
        seats, due_s, everybody = self.limits.max_running, request.prompt_due_s, [*self.begun, *self.fresh]
        tokens = dict(zip(everybody, self.work()[:, TOKENS], strict=True))
        seated = [r for r in everybody if r.phase.name == "RUNNING"]
        line = [r for r in everybody if r not in seated and r.prompt_due_s <= due_s]
        line.sort(key=lambda r: r.prompt_due_s)
        if due_s == math.inf or len(seated) + len(line) < seats or not any(tokens.values()):
            return -math.inf
        left, num_steps = sorted(tokens[r] for r in seated), 0.0
        for newcomer in [*line, request]:  # one step after the other, as far as those with the least left go
            if len(left) >= seats:
                num_steps += left[0]
                left = [n - left[0] for n in left[1:]]
            left = sorted([*left, tokens.get(newcomer, 0.0)])
        latest_s = SHARE * (due_s - start_s)
        most_steps = sum(tokens[r] for r in [*seated, *line]) / seats
        work = self.work(request)
        fixed_s, (decode, key) = self.prices.fixed_s(seats)[0], (self.prices.decode[0], self.prices.key[0])
        full_s = fixed_s + seats * (decode + work[:-1, CONTEXT].mean() * key)
        prompts_s = self.prompts_s(due_s, [*everybody, request])
        assert num_steps <= most_steps + 1e-9
        at_most_s, exactly_s = (self.seconds(n * full_s + prompts_s) - latest_s for n in (most_steps, num_steps))
        return at_most_s if at_most_s <= 0.0 else exactly_s

    def prompts_s(self, due_s, requests) -> float:
        """Of what is due by then, all prompts."""
        begun, fresh = [r for r in requests if r in self.begun], [r for r in requests if r not in self.begun]
        work = work_of([standing(r)[1] for r in begun], fresh)
        longest = max([r.known_tokens for r in self.begun], default=0)
        charged = bill(
            self.prices, work, limited_spans([*begun, *fresh], self.prices, len(begun)), 1, longest, self.limits
        )
        return float(charged.prompt_s[0][work[:, PROMPT_DUE_S] <= due_s].sum())

    def seconds(self, raw_s):
        """That many steps deviate from the mean by less than one does."""
        share = PACE_DOUBT + (1.0 - PACE_DOUBT) / (1.0 + raw_s / self.step_s)
        return raw_s * (self.spread.mean + (self.spread.upper - self.spread.mean) * share**0.5)

    def add(self, request) -> None:
        self.times = np.concatenate((self.times, check_times(work_of([], [request]), -math.inf, MAX_CHECKS)))
        self.fresh.append(request)


@given(st.data(), st.integers(0, 3))
def test_adding_up_is_the_same_as_summing_anew(make, data, num_put_back: int) -> None:
    situation, model = data.draw(make.situations()), make.model(slowness=1.5, upper=1.4)
    limits, prices = Limits(**situation["limits"]), PriceLists().of(model, [make.request()])
    running = [make.request(**r) for r in situation["running"]]
    newcomers = [make.request(**r) for r in situation["waiting"]]
    for request in running[:num_put_back]:
        request.phase, request.computed_tokens, request.exit_tokens = type(request.phase).WAITING, 0, {}
    lists = PriceLists()
    lists.of(model, [make.request()])  # knows the whole ladder, as a server's soon does
    book = Book([*running], make.request(), NOW, model, limits, lists)
    reference = Reference(running, NOW, model, prices, limits)
    for request in newcomers:
        overrun_s, entry = book.overrun_s(request, NOW)
        assert overrun_s == pytest.approx(reference.overrun_s(request, NOW), rel=1e-9, abs=1e-9)
        alone = Reference([], NOW, model, prices, limits)
        mine = overrun_alone_s(request, NOW, prices, book.spread, limits)
        assert mine == pytest.approx(alone.overrun_s(request, NOW), rel=1e-9, abs=1e-9)
        book.add(entry)
        reference.add(request)


def test_room_is_made_for_any_number_of_newcomers(make) -> None:
    model, limits = make.model(), Limits()
    lists = PriceLists()
    book = Book([], make.request(), NOW, model, limits, lists)
    reference = Reference([], NOW, model, lists.of(model, [make.request()]), limits)
    for number in range(150):
        request = make.request(ttft_s=1.0 + number, tpot_s=0.5)
        overrun_s, entry = book.overrun_s(request, NOW)
        assert overrun_s == pytest.approx(reference.overrun_s(request, NOW))
        book.add(entry)
        reference.add(request)
    assert (reference.work()[:, PROMPT_DUE_S] < math.inf).all()


@given(st.data())
def test_what_a_step_is_about_to_do_counts_as_done(make, data) -> None:
    situation, model = data.draw(make.situations()), make.model()
    limits, lists = Limits(**situation["limits"]), PriceLists()
    lists.of(model, [make.request()])
    running = [make.request(**r) for r in situation["running"]]
    sizes = [data.draw(st.integers(0, r.known_tokens - r.computed_tokens)) for r in running]
    ahead = [Slice(r, n, r.points[0]) for r, n in zip(running, sizes, strict=True) if n]
    foreseen = Book(running, make.request(), NOW, model, limits, lists, ahead)
    for request, n in zip(running, sizes, strict=True):
        request.computed_tokens += n
        if n and request.computed_tokens == request.known_tokens:
            request.known_tokens, request.generated_tokens = request.known_tokens + 1, request.generated_tokens + 1
            request.first_token_s = NOW if request.generated_tokens == 1 else request.first_token_s
    afterwards = Book(running, make.request(), NOW, model, limits, lists)
    newcomer = make.request(ttft_s=1.0, tpot_s=0.1)
    mine, _ = foreseen.overrun_s(newcomer, NOW)
    true, _ = afterwards.overrun_s(newcomer, NOW)
    # The longest sequence, to which shared attention is padded, has grown by a token; that is all.
    assert mine == pytest.approx(true, rel=0.02, abs=2e-3)
