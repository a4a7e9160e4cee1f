"""How long a policy takes to decide one step: 64 requests run, 256 wait, 8 levels.

    python benchmarks/planner.py --save

Requests of three classes and all stages; the cost model is a table of 8 levels. Each policy plans the same 200
situations; the table has quantiles of the time of one plan, and of ``admission`` and one ``admit`` where a policy has
them.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence

import common

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


def situations(num: int, seed: int = 0) -> list[tuple[list[Request], list[Request]]]:
    """(waiting, running)."""
    rng = random.Random(seed)
    return [
        ([request(rng, i) for i in range(NUM_WAITING)], [running(rng, i) for i in range(NUM_RUNNING)])
        for _ in range(num)
    ]


def microseconds(run: Callable[[int], object], num: int) -> tuple[float, float]:
    """Median and 99th percentile of ``run(i)``."""
    taken = []
    for i in range(num):
        start = time.perf_counter()
        run(i)
        taken.append((time.perf_counter() - start) * 1e6)
    return statistics.median(taken), sorted(taken)[math.ceil(0.99 * num) - 1]


def rows(num: int) -> Sequence[Sequence[str]]:
    """One for each policy."""
    limits = Limits(max_running=NUM_RUNNING + 16)
    capacity = Capacity(100_000, 100_000, 32, {point.name: point.level + 1 for point in POINTS})
    model = StepCostModel.linear(POINTS, full_row_s=100e-6, overhead_s=1e-3)
    cases = situations(num)
    newcomer = request(random.Random(1), 0)
    table = []
    for name in sorted(POLICIES):
        policy = create_policy(name, limits)
        policy.plan(NOW, *cases[0], capacity, model)
        plan = microseconds(lambda i, policy=policy: policy.plan(NOW, *cases[i], capacity, model), num)
        cells = [f"{value:.0f}" for value in plan]
        if policy.admission(NOW, [], [], model) is not None:
            made = [policy.admission(NOW, *case, model) for case in cases]
            make = microseconds(lambda i, policy=policy: policy.admission(NOW, *cases[i], model), num)
            first = microseconds(lambda i, made=made: made[i].admit(NOW, newcomer), num)
            later = microseconds(lambda i, made=made: made[i].admit(NOW, newcomer), num)
            cells += [f"{make[0]:.0f}", f"{first[0]:.0f}", f"{later[0]:.0f}"]
        table.append([name, *cells, *[""] * (5 - len(cells))])
    return table


def main() -> None:
    """See the module."""
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--situations", type=int, default=200, help="plans a policy")
    args = parser.parse_args()
    header = ["policy", "plan us, median", "p99", "admission us, median", "first admit us", "further admit us"]
    title = f"One decision: {NUM_RUNNING} running, {NUM_WAITING} waiting, {NUM_LEVELS} levels"
    notes = "Pure Python and numpy, one thread. The first question to an admission makes its sums."
    common.report("planner", title, header, rows(args.situations), notes, args.save)


if __name__ == "__main__":
    main()
