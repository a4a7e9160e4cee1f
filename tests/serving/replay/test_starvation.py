"""No class starves: what is less urgent gets its turn even while more urgent work alone is more than can be served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepwell.schedulers.registry import POLICIES
from stepwell.serving.config import SLOClass
from stepwell.serving.replay.simulate import capacity, simulate
from stepwell.serving.replay.workload import Arrival, Workload

PATIENCE_S = 120.0
"""Longer than any class waits for its turn."""
CLASSES = {"urgent": SLOClass(deadline_ms=8000.0, priority=1), "idle": SLOClass(priority=3), "default": SLOClass()}


@pytest.mark.parametrize("policy", [*POLICIES, "fixed:min"])
def test_no_class_starves(make_setup, policy):
    setup = replace(make_setup(policy, slowness=50.0, max_running=4, max_waiting=1000), classes=CLASSES)
    urgent = Workload.of("urgent", [Arrival(i, 20, 5, "urgent") for i in range(400)])
    rate = 4 * capacity(urgent, setup)  # overload at the smallest point, too
    arrivals = [replace(a, at_s=a.at_s / rate) for a in urgent.arrivals]
    last_s = arrivals[-1].at_s
    arrivals += [Arrival(0.1 * last_s * i, 20, 5, "idle") for i in range(6)]
    replay = simulate(Workload.of("both", arrivals), setup)
    assert last_s > PATIENCE_S
    idle = replay.summary.per_class["idle"]
    assert idle.outcomes["met"] == idle.num_sent == 6
    assert idle.ttft_p99_s < PATIENCE_S
    assert idle.latency_p99_s < 2 * PATIENCE_S
    assert replay.summary.per_class["urgent"].attainment < 1
