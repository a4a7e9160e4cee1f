"""What surrounds the engine's steps on this machine while it serves load: for simulations that are to come true.

Measured on the real server, with its load generator on the same machine: how much longer steps take than the profile
says, at the largest and the smallest level, what a call and a token cost the endpoint and the client, and what a call
takes from the step that runs when it comes.
"""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from stepwell.schedulers.correction import KINDS
from stepwell.serving.config import SLOClass
from stepwell.serving.replay.child import ChildServer
from stepwell.serving.replay.load import LoadRun, Target, send_load
from stepwell.serving.replay.surroundings import Surroundings, fit_steps
from stepwell.serving.replay.workload import Arrival, Workload

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import cpu_s

POLICIES = ("fixed:default:7", "fixed:min")
"""Large steps and small ones: how much of a step's time is a share of it, and how much the same for all."""
NUM_CALLS = 150
HOPELESS = {"hopeless": SLOClass(ttft_ms=1.0)}


def calibrate(
    model: str, workload: Workload, threads: int, classes: Mapping[str, SLOClass], timeout_s: float
) -> Surroundings:
    """From runs of ``workload``, at a rate that keeps the engine busy at the largest level."""
    steps: list[tuple[float, float, int]] = []
    call_s, token_s = _call_s(model, threads), 0.0
    for policy in POLICIES:
        config = {"models": [{"source": model, "policy": policy}], "threads": threads}
        with ChildServer(config) as child:
            target = Target(child.address, model, classes, vocab_size=2048, timeout_s=timeout_s, slo_as="none")
            start_cpu_s = cpu_s(child.pid)
            run = send_load(workload, target)
            used_s = cpu_s(child.pid) - start_cpu_s + run.cpu_s
            token_s = (used_s - call_s * len(workload)) / _num_tokens(run)  # of the last, which has no other load
            steps += _steps(child)
    toll_s = _toll_s(model, workload, threads, classes, timeout_s)
    return Surroundings(*fit_steps(steps), call_s, max(token_s, 0.0), toll_s)


def _call_s(model: str, threads: int) -> float:
    """Of a call among many, to an engine that is idle and refuses it."""
    calls = Workload.of("hopeless", [Arrival(0.0, 200, 8, "hopeless") for _ in range(NUM_CALLS)])
    with ChildServer({"models": [model], "threads": threads}) as child:
        target = Target(child.address, model, HOPELESS, slo_as="numbers")
        send_load(calls, target)  # the first calls find nothing warm
        run = send_load(calls, target)
    assert not any(result.served for result in run.results)
    return run.duration_s / NUM_CALLS


def _toll_s(model: str, workload: Workload, threads: int, classes: Mapping[str, SLOClass], timeout_s: float) -> float:
    """As the planner learns it, of calls that come twice as fast."""
    with ChildServer({"models": [model], "threads": threads}) as child:
        target = Target(child.address, model, classes, vocab_size=2048, timeout_s=timeout_s, slo_as="none")
        send_load(workload.at_rate(2 * workload.rate), target)
        return _metrics(child)["call_toll_seconds", None]


def _num_tokens(run: LoadRun) -> int:
    return sum(result.generated_tokens for result in run.results)


def _steps(child: ChildServer) -> list[tuple[float, float, int]]:
    """Of each kind of step: mean seconds by the profile, mean seconds that they took, number."""
    found, steps = _metrics(child), []
    for kind in KINDS:
        if number := int(found.get(("step_seconds_count", kind), 0)):
            mean_s = found["step_seconds_sum", kind] / number
            steps.append((mean_s / found["step_slowness_ratio", kind], mean_s, number))
    return steps


def _metrics(child: ChildServer) -> dict[tuple[str, str | None], float]:
    """By name and kind of step."""
    with urllib.request.urlopen(f"{child.http}/metrics", timeout=10.0) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        (sample.name.removeprefix("stepwell_"), sample.labels.get("kind")): sample.value
        for family in families
        for sample in family.samples
    }
