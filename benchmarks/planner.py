"""How long a policy takes to decide one step: 64 requests run, 256 wait, 8 levels.

    make compiled && python benchmarks/planner.py --compiled build/compiled --save

Requests of three classes and all stages; the cost model is a table of 8 levels. Each policy plans the same 100
situations; the table has quantiles of the time of one plan, and of ``admission`` and one ``admit`` where a policy has
them. With ``--compiled`` the policies of that installation plan in turn with those of the tree.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import common

from stepwell.schedulers.base import Policy
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Capacity, Limits
from stepwell.schedulers.registry import POLICIES, create_policy
from stepwell.schedulers.request import SLO, OperatingPoint, Phase, Request

NUM_LEVELS, NUM_RUNNING, NUM_WAITING = 8, 64, 256
POINTS = tuple(
    OperatingPoint(k / NUM_LEVELS, 0.6 + 0.4 * (k / NUM_LEVELS) ** 0.5, "depth", k - 1)
    for k in range(1, NUM_LEVELS + 1)
)
CLASSES = (SLO("tight", ttft_s=0.1, tpot_s=0.03, priority=1), SLO("normal", ttft_s=0.5, tpot_s=0.1),
           SLO("relaxed", ttft_s=5.0, tpot_s=0.5, priority=3))  # fmt: skip
NOW = 1000.0

Situation: TypeAlias = tuple[list[Request], list[Request]]
"""(waiting, running)."""


def request(rng: random.Random, number: int) -> Request:
    """One that waits."""
    slo = rng.choice(CLASSES)
    arrival_s = NOW - rng.random() * slo.ttft_s * 0.6
    return Request(str(number), arrival_s, slo, POINTS, rng.randint(16, 512), rng.randint(8, 128), may_switch=True)


def running(rng: random.Random, number: int) -> Request:
    """One that decodes (most do) or reads its prompt."""
    made = request(rng, number)
    made.phase, made.point, made.started_s = Phase.RUNNING, rng.choice(POINTS), made.arrival_s
    if rng.random() < 0.9:
        made.generated_tokens = rng.randint(1, made.max_tokens - 1)
        made.first_token_s = NOW - made.generated_tokens * 0.02
        made.known_tokens = made.prompt_tokens + made.generated_tokens
        made.computed_tokens = made.known_tokens - 1
    if made.point is not POINTS[-1] and rng.random() < 0.5:
        made.exit_tokens = {made.point: made.computed_tokens}
    return made


def situations(num: int, seed: int = 0) -> list[Situation]:
    """What policies plan from."""
    rng = random.Random(seed)
    return [
        ([request(rng, i) for i in range(NUM_WAITING)], [running(rng, i) for i in range(NUM_RUNNING)])
        for _ in range(num)
    ]


def microseconds(run: Callable[[int], object], num: int, repeats: int = 5) -> tuple[float, float]:
    """Median and 99th percentile of ``run(i)``, after one that is not counted: in a server the requests of one step are
    mostly those of the next."""
    taken = []
    for i in range(num):
        for repeat in range(repeats + 1):
            start = time.perf_counter()
            run(i)
            if repeat:
                taken.append((time.perf_counter() - start) * 1e6)
    return statistics.median(taken), sorted(taken)[math.ceil(0.99 * len(taken)) - 1]


Figures: TypeAlias = dict[str, list[float]]
"""Of each policy, microseconds: a plan, its 99th percentile, and where it has promises: making them, their first
question, a further one."""


def measure(num: int) -> Figures:
    """Of all policies, in so many situations."""
    limits = Limits(max_running=NUM_RUNNING)
    capacity = Capacity(100_000, 100_000, 32, {point.name: point.level + 1 for point in POINTS})
    model = StepCostModel.linear(POINTS, full_row_s=100e-6, overhead_s=1e-3)
    cases, found = situations(num), {}
    for name in sorted(POLICIES):
        policy = create_policy(name, limits)
        plan = microseconds(lambda i, policy=policy: policy.plan(NOW, *cases[i], capacity, model), num)
        found[name] = [*plan, *_admission(policy, cases, model)]
    return found


def measure_at(installation: str, num: int) -> Figures:
    """The same of the policies of another installation, by another process."""
    command = [sys.executable, __file__, "--situations", str(num), "--figures"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": installation}, check=True, capture_output=True, text=True
    )
    compiled, figures = json.loads(done.stdout)
    if not compiled:
        raise SystemExit(f"--compiled: {installation} holds no compiled planner; run make compiled")
    return dict(figures)


def rows(rounds: Sequence[Figures], compiled: Sequence[Figures]) -> Sequence[Sequence[str]]:
    """One for each policy: the medians of the rounds; those of the compiled ones in brackets."""

    def cell(name: str, column: int) -> str:
        if len(rounds[0][name]) <= column:
            return ""
        both = [statistics.median(each[name][column] for each in of) for of in (rounds, compiled) if of]
        return f"{both[0]:.0f}" + "".join(f" ({value:.0f})" for value in both[1:])

    return [[name, *(cell(name, column) for column in range(5))] for name in rounds[0]]


def _admission(policy: Policy, cases: Sequence[Situation], model: StepCostModel) -> list[float]:
    """Microseconds of making promises, of their first question, and of a further one; empty if it has none."""
    if policy.admission(NOW, [], [], model) is None:
        return []
    rng, first, later = random.Random(1), [], []
    for case in cases:
        promises = policy.admission(NOW, *case, model)
        for taken in (first, later):
            newcomer, start = request(rng, 0), time.perf_counter()
            promises.admit(NOW, newcomer)
            taken.append((time.perf_counter() - start) * 1e6)
    make, _ = microseconds(lambda i: policy.admission(NOW, *cases[i], model), len(cases))
    return [make, statistics.median(first), statistics.median(later)]


def main() -> None:
    """See the module."""
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--situations", type=int, default=100, help="plans a policy")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many count")
    parser.add_argument("--compiled", metavar="FOLDER", help="an installation with a compiled planner: make compiled")
    parser.add_argument("--figures", action="store_true", help="print what was measured, for another process")
    args = parser.parse_args()
    if args.figures:
        print(json.dumps([common.COMPILED_PLANNER, measure(args.situations)]))
        return
    rounds: list[Figures] = []
    compiled: list[Figures] = []
    for number in range(args.rounds):
        rounds.append(measure(args.situations))
        if args.compiled:
            compiled.append(measure_at(args.compiled, args.situations))
        print(f"  round {number + 1}/{args.rounds}", end="\r", file=sys.stderr)
    header = ["policy", "plan us, median", "p99", "admission us, median", "first admit us", "further admit us"]
    title = f"One decision: {NUM_RUNNING} running, {NUM_WAITING} waiting, {NUM_LEVELS} levels"
    notes = (
        f"Medians of {args.rounds} rounds. One thread, {'compiled' if common.COMPILED_PLANNER else 'Python and numpy'}"
    )
    notes += "; in brackets: compiled, in turn." if compiled else "."
    notes += " The first question to an admission makes its sums."
    common.report("planner", title, header, rows(rounds, compiled), notes, args.save)


if __name__ == "__main__":
    main()
