"""Every policy under load, in simulated time: a line for each, that differs if any decision does.

``test_compiled`` runs it with the planner of the tree, and with a compiled one.
"""

from __future__ import annotations

import hashlib
import logging
import random
from dataclasses import replace

from stepwell.models.ladder import Architecture, parse_ladders
from stepwell.schedulers import fill
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import POLICIES
from stepwell.serving.config import SLOClass
from stepwell.serving.engine.points import UnitParameters, operating_points
from stepwell.serving.replay.simulate import Setup, SimModel, simulate
from stepwell.serving.replay.virtual import Fault
from stepwell.serving.replay.workload import Arrival, Workload

CLASSES = {
    "tight": SLOClass(ttft_ms=150.0, tpot_ms=40.0, priority=1),
    "normal": SLOClass(ttft_ms=600.0, tpot_ms=120.0, min_quality=0.6),
    "whole": SLOClass(deadline_ms=2000.0, priority=3),
    "default": SLOClass(),
}
LADDERS = {"format": 1, "default": "depth", "ladders": {
    "depth": {"kv": "exact", "levels": [{"layers": n, "quality": n / 4} for n in (1, 2, 3, 4)]},
    "width": {"kv": "approximate", "levels": [{"ffn": n, "quality": n / 8} for n in (2, 5, 8)]},
}}  # fmt: skip


def setup() -> Setup:
    """Pages are scarce, steps vary, and some fail."""
    ladders = parse_ladders(LADDERS, Architecture(num_layers=4, num_kv_groups=2, ffn_channels=8))
    points = operating_points(ladders, UnitParameters(attention_group=4, ffn_channel=3))
    costs = StepCostModel.linear(list(points.values()), 0.0005, 0.004)
    model = SimModel(ladders, points, costs, num_pages=600, page_tokens=4, vocab_size=100, context_length=400)
    faults = [Fault(slowdown=3.0), Fault(error=ValueError("injected"))]
    limits = Limits(max_running=24, max_waiting=60)
    return Setup(
        model, "fixed", CLASSES, limits, noise=0.2, faults=lambda n, _: faults[n % 2] if n % 60 == 59 else Fault()
    )


def workload() -> Workload:
    """Bursts."""
    rng, at_s, arrivals = random.Random(5), 0.0, []
    for _ in range(300):
        at_s += rng.choice([0.0, 0.0, 0.001, 0.1])
        arrivals.append(Arrival(at_s, rng.randint(4, 200), rng.randint(1, 60), rng.choice(list(CLASSES))))
    return Workload.of("bursts", arrivals)


def main() -> None:
    """Print."""
    logging.disable()  # of the steps that are to fail
    print("interpreted" if (fill.__file__ or "").endswith(".py") else "compiled")
    for policy in sorted(POLICIES):
        replay = simulate(workload(), replace(setup(), policy=policy))
        outcomes = sorted({result.outcome for result in replay.results})
        digest = hashlib.sha256(repr(replay.results).encode()).hexdigest()
        print(policy, replay.num_steps, *outcomes, digest)


if __name__ == "__main__":
    main()
