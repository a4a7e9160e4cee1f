"""How fast simulated time goes: requests a second that the simulator works through on one core, policy by policy.

``PYTHONPATH=build/compiled`` after ``make compiled`` has the planner compiled. Without the Azure traces (--code,
--conv: CSV files of Azure/AzurePublicDataset) made-up arrivals of the same rate, burstiness and mean lengths stand in
for them.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from pathlib import Path

from common import COMPILED_PLANNER, arguments, report

from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import POLICIES
from stepwell.serving.config import ModelConfig, ServerConfig
from stepwell.serving.replay.sim_model import open_sim_model
from stepwell.serving.replay.simulate import FULL_QUALITY, Setup, capacity, simulate
from stepwell.serving.replay.synthetic import synthesize
from stepwell.serving.replay.trace import read_trace
from stepwell.serving.replay.workload import Workload

STAND_INS = {
    "code": "gamma:rate=2.57,cv=13.2,prompt=2048,output=28,length_cv=0.9",
    "conv": "gamma:rate=5.53,cv=1.09,prompt=1155,output=211,length_cv=1.0",
}
LOAD = 1.0
CLASSES = {"tight": 1.0, "normal": 1.0, "relaxed": 1.0}
ONE_SHOT_STEP_TOKENS = 4096


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--code", type=Path, help="AzureLLMInferenceTrace_code.csv")
    parser.add_argument("--conv", type=Path, help="AzureLLMInferenceTrace_conv.csv")
    parser.add_argument("--requests", type=int, default=2000, help="of each trace; four times as many one-shot ones")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts: the rest is other people's load")
    parser.add_argument("--policies", default=",".join(POLICIES))
    args = parser.parse_args()
    model, _ = open_sim_model(ModelConfig("nested-lm"), threads=1)
    base = Setup(model, FULL_QUALITY, ServerConfig().slo_classes, noise=0.05)
    batches = replace(base, limits=Limits(max_step_tokens=ONE_SHOT_STEP_TOKENS))
    rows = []
    for name, workload, setup in cases(args, model.context_length, base, batches):
        loaded = workload.with_classes(CLASSES).at_rate(LOAD * capacity(workload, setup))
        lengths = [(a.prompt_tokens, a.output_tokens) for a in workload.arrivals]
        prompt, output = (sum(n) / len(lengths) for n in zip(*lengths, strict=True))
        for policy in args.policies.split(","):
            seconds, steps = measure(loaded, replace(setup, policy=policy), args.repeats)
            print(f"{name}, {policy}: {len(workload) / seconds:.0f}/s", flush=True)
            row = [name, policy, f"{prompt:.0f} + {output:.1f}", str(steps)]
            rows.append([*row, f"{1e6 * seconds / steps:.0f}", f"{len(workload) / seconds:,.0f}"])
    report(
        "simulation_speed",
        "Simulated requests a second of one core's time",
        ["workload", "policy", "mean tokens", "steps", "µs a step", "requests/s"],
        rows,
        f"At load {LOAD:g}, classes in equal shares. Scaled: lengths fitted to {model.context_length} tokens. "
        f"One-shot: 1 to 64 prompt tokens, one generated, up to {ONE_SHOT_STEP_TOKENS} tokens a step. Time is that of "
        f"the process, the least of several runs. The planner is {'compiled' if COMPILED_PLANNER else 'in Python'}.",
        args.save,
    )


def cases(args: argparse.Namespace, context: int, base: Setup, batches: Setup) -> list[tuple[str, Workload, Setup]]:
    """Name, workload and setup of each."""
    code, conv = (
        read_trace(path).window(num_requests=args.requests) if path else synthesize(STAND_INS[name], args.requests)
        for name, path in (("code", args.code), ("conv", args.conv))
    )
    rng = random.Random(0)
    arrivals = synthesize("poisson:rate=100", 4 * args.requests).arrivals
    one_shot = tuple(replace(a, prompt_tokens=rng.randint(1, 64), output_tokens=1) for a in arrivals)
    made = {True: "", False: ", made up"}
    return [
        (f"Azure code, scaled{made[args.code is not None]}", code.fitted(context), base),
        (f"Azure code, as recorded{made[args.code is not None]}", code, base),
        (f"Azure conv, scaled{made[args.conv is not None]}", conv.fitted(context), base),
        ("one-shot", Workload("one-shot", one_shot), batches),
    ]


def measure(workload: Workload, setup: Setup, repeats: int) -> tuple[float, int]:
    """Seconds of processor time, and steps."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        replay = simulate(workload, setup)
        seconds.append(time.process_time() - start)
    return min(seconds), replay.num_steps


if __name__ == "__main__":
    main()
