"""Which level is affordable for all that is waiting and running, and which request gets which.

The demand bound is solved for the highest rung at which everything due by any time fits into a share of the time until
then; and how much of the way to the next rung fits too. That is a budget of seconds. It is spent where a second buys
most quality: quality counts by request, so short requests climb before long ones, and requests that have kept exit
states to backfill climb last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stepwell.schedulers.demand import Demand
from stepwell.schedulers.outlook import Outlook
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.prices import LevelCosts, Prices
from stepwell.schedulers.request import Request
from stepwell.schedulers.roll import limited
from stepwell.schedulers.work import CONTEXT, PROMPT, TOKENS, Array, Work, check_times

CALM_SHARE, BUSY_SHARE, CROWDED_SHARE = 0.6, 0.5, 0.3
"""Of the time until something is due, what the work due by then may take at the chosen levels: in an empty house, in
a busy one, and in one with a crowd at the door. The rest is for those who have not arrived yet: the more are here, the
more are to be expected (Little's law), and where they come in bursts, what was put off for quality is due when the
burst comes."""
BUSY = 0.25
"""Requests here, as a share of the seats, from which on the house is busy."""
CROWDING = 0.5
"""And from which on there is a crowd, which is full with as many more as there are seats."""
RESERVE_S = 0.01
"""Time kept back besides: steps end when they end, not when something is due."""
AMPLE_S = 1e9
"""Time to spare if nothing is due."""
MAX_CHECKS = 16
"""Times at which the bound is checked."""

Span = tuple[int, int, int]
"""(Index of a request that may not use all levels, its lowest level, its highest)."""


class Pace(NamedTuple):
    """What is affordable on average."""

    rung: int
    """Index into the ladder's rungs: everybody may run at this one, or at the lowest if even that is too much."""
    share: float
    """How much of the way to the next rung is affordable as well, 0..1."""
    spare_s: float
    """Time left over if the rung is the highest."""


class Bill(NamedTuple):
    """What requests cost at each rung: [rungs, requests], in seconds without correction."""

    levels: npt.NDArray[np.intp] | None
    """Where they run; None if that is the rung itself for everybody."""
    token_s: Array
    """A generated token, fixed parts of steps apart."""
    prompt_s: Array | None
    """All of the prompt that is left, with its part of the fixed parts; None if nobody has any left."""
    fixed_s: Array
    """[rungs]: a step, besides."""


def bill(
    prices: LevelCosts,
    work: Work,
    spans: Sequence[Span],
    num_decoding: int,
    longest: int,
    limits: Limits,
    has_prompts: bool = True,
    num_rungs: int | None = None,
) -> Bill:
    """Price ``work``, in company of so many that decode, the longest of them with so many tokens; ``has_prompts``:
    whether there are rows of prompts in it; ``num_rungs``: the lowest rungs only."""
    levels, at = None, prices.at_rungs if num_rungs is None else prices.at_first_rungs(num_rungs)
    if spans:
        low, high = np.zeros(len(work), np.intp), np.full(len(work), len(prices.points) - 1)
        for index, lowest, highest in spans:
            low[index], high[index] = lowest, highest
        levels = np.clip(prices.rungs_at[:num_rungs, None], low, high)
        at = Prices(*(column[levels] for column in prices.columns))
    fixed_s = prices.fixed_at_rungs_s(num_decoding)[:num_rungs]
    context = work[:, CONTEXT]
    token_s = at.key_s * (np.maximum(context, longest) if prices.padded else context)
    token_s += at.token_s
    if not has_prompts:
        return Bill(levels, token_s, None, fixed_s)
    rows = work[:, PROMPT]
    # Pairs: each of a prompt's chunks is a rectangle up to its last token, or as far as it reaches if that is less.
    seen = context - 0.5 * (work[:, TOKENS] + rows - np.minimum(rows, limits.max_step_tokens))
    np.maximum(seen, np.minimum(context, 0.5 * rows), out=seen)
    prompt_s = at.pair_s * seen
    prompt_s += (
        prices.rung_row_s(num_decoding, limits.max_step_tokens)[:num_rungs]
        if levels is None
        else (at.row_s + fixed_s[:, None] / limits.max_step_tokens)
    )
    prompt_s *= rows
    prompt_s += at.prompt_s * np.minimum(rows, 1.0)
    return Bill(levels, token_s, prompt_s, fixed_s)


def affordable(
    work: Work,
    weights: Array | None,
    charged: Bill,
    now: float,
    slowness: float,
    share: float,
    lost_each_s: Callable[[Array], Array | None] | None = None,
) -> Pace:
    """The pace that meets everything in ``work``.

    Args:
        work: of all requests, or of a sample.
        weights: how many requests each row stands for; None = one.
        charged: for the same rows.
        now: time.
        slowness: actual over predicted seconds.
        share: of the time until something is due, what may be given away.
        lost_each_s: of the time until each of some instants, what others will take; None, or from it, = nothing.
    """
    top = len(charged.fixed_s) - 1
    times = check_times(work, now + RESERVE_S / 2, MAX_CHECKS)
    if not len(times):
        return Pace(top, 0.0, AMPLE_S)
    demand = Demand(work, times)
    token_s, prompt_s = charged.token_s, charged.prompt_s
    if weights is not None:
        token_s, prompt_s = token_s * weights, None if prompt_s is None else prompt_s * weights
    need = demand.seconds(token_s, prompt_s)
    need += demand.num_steps()[:, None] * charged.fixed_s
    have = (times - (now + RESERVE_S / share)) * (share / slowness)
    if lost_each_s is not None and (lost_s := lost_each_s(times)) is not None:
        have -= lost_s / slowness
    left = have[:, None] - need
    least: list[float] = np.minimum.reduce(left).tolist()
    rung = top
    while rung >= 0 and least[rung] < 0.0:
        rung -= 1
    if rung < 0:
        return Pace(0, 0.0, 0.0)
    if rung == top:
        return Pace(top, 0.0, least[top])
    partly = left[:, rung] / np.maximum(need[:, rung + 1] - need[:, rung], 1e-9)
    return Pace(rung, min(np.minimum.reduce(partly).item(), 1.0), 0.0)


class Assignment(NamedTuple):
    """Where requests run; one entry each."""

    levels: list[int]
    lowest: list[int]
    """The lowest level that each allows."""
    token_s: list[float]
    """A generated token at its level."""
    backfill_s: list[float]
    """What it takes to get there, once."""


def assign(
    requests: Sequence[Request], outlook: Outlook, charged: Bill, prices: LevelCosts, pace: Pace, max_raise_s: float
) -> Assignment:
    """Deal the budget of ``pace`` out.

    Args:
        requests: that may run in this step, one at least: the first of the outlook's.
        outlook: all that waits and runs.
        charged: what that costs.
        prices: of the ladder.
        pace: what is affordable.
        max_raise_s: nobody's backfill may take longer.
    """
    num = len(requests)
    own = outlook.work[:num].T
    levels = None if charged.levels is None else charged.levels[:, :num]
    if levels is None and pace.rung == 0 and not pace.share:
        return _everybody(0, charged, prices, [0.0] * num)
    backfill = _backfill(requests, own[CONTEXT], prices, levels)
    if levels is None and pace.rung == len(prices.rungs) - 1:
        all_s = np.zeros(num) if backfill is None else np.add.reduce(backfill)
        if backfill is None or (all_s.sum() <= pace.spare_s and all_s.max() <= max_raise_s):
            return _everybody(pace.rung, charged, prices, all_s.tolist())
    tokens = own[TOKENS] + (own[PROMPT] > 0.0) if outlook.has_prompts else own[TOKENS]
    token_s = charged.token_s[:, :num]
    cost = token_s + charged.fixed_s[:, None] / num
    cost *= tokens
    if charged.prompt_s is not None:
        cost += charged.prompt_s[:, :num]
    budget = float(np.add.reduce(cost[pace.rung] - cost[0])) + pace.spare_s
    cost = cost[1:] - cost[:-1]
    if pace.share:
        budget += pace.share * float(np.add.reduce(cost[pace.rung]))
    # [rungs, requests]: backfill from the lowest rung up to each
    climbed = np.zeros((len(cost) + 1, num))
    if backfill is not None:
        cost += backfill
        backfill.cumsum(0, out=climbed[1:])
    gain = prices.gain if levels is None else np.diff(prices.quality[levels], axis=0)
    worth = gain * (tokens / outlook.roll.max_tokens[:num]) / (cost + 1e-12)
    if backfill is not None:
        np.putmask(worth, climbed[1:] > max_raise_s, 0.0)
    if levels is not None:
        worth[levels[1:] == levels[:-1]] = math.inf  # rungs it may not use are no obstacle
    reached = _spend(worth, cost, budget)
    # where tables of [rungs, requests] have what is at the rung of each
    of_each = reached * num + np.arange(num)
    if levels is None:
        chosen, lowest = prices.rungs_at.take(reached).tolist(), [prices.rungs[0]] * num
    else:
        chosen, lowest = levels.take(of_each).tolist(), levels[0].tolist()
    return Assignment(chosen, lowest, token_s.take(of_each).tolist(), climbed.take(of_each).tolist())


def _everybody(rung: int, charged: Bill, prices: LevelCosts, backfill_s: list[float]) -> Assignment:
    """All at one rung, without a choice to make."""
    num = len(backfill_s)
    token_s: list[float] = charged.token_s[rung, :num].tolist()
    return Assignment([prices.rungs[rung]] * num, [prices.rungs[0]] * num, token_s, backfill_s)


def _spend(worth: Array, cost: Array, budget: float) -> npt.NDArray[np.intp]:
    """[requests]: the rung that each reaches if climbs ([rungs - 1, requests]) are bought in order of worth."""
    num = worth.shape[1]
    np.minimum.accumulate(worth, axis=0, out=worth)  # a rung is only reached by way of those below
    order = (-worth).argsort(None, kind="stable")
    num_climbs = int(cost.take(order).cumsum().searchsorted(budget + 1e-9, side="right"))
    bought = order[: min(num_climbs, np.count_nonzero(worth > 0.0))]
    return np.bincount(bought % num, minlength=num)


def _backfill(
    requests: Sequence[Request], context: Array, prices: LevelCosts, levels: npt.NDArray[np.intp] | None
) -> Array | None:
    """[rungs - 1, requests]: seconds to bring kept tokens from each rung to the next; None if nobody has kept any."""
    num, num_climbs, rungs_above = len(requests), len(prices.rungs) - 1, prices.rungs_above
    kept = [(i, r.exit_tokens) for i, r in enumerate(requests) if r.exit_tokens]
    if not kept:
        return None
    at, counts = [], []
    for i, exit_tokens in kept:
        for point, num_tokens in exit_tokens.items():
            if (climb := rungs_above[point.level]) < num_climbs:
                at.append(climb * num + i)
                counts.append(num_tokens)
    tokens = np.bincount(at, counts, num_climbs * num).reshape(num_climbs, num)
    row_s, pair_s = prices.climb_s
    backfill: Array = pair_s[:, None] * context
    backfill += row_s[:, None]
    backfill *= tokens.cumsum(0)
    if levels is not None:
        backfill[levels[1:] == levels[:-1]] = 0.0
    return backfill


def limited_spans(requests: Sequence[Request], prices: LevelCosts, num_begun: int) -> list[Span]:
    """Of those that may not use all levels. The first ``num_begun`` have begun."""
    return [(i, *prices.span(requests[i])) for i in limited(requests, len(prices.points), num_begun)]
