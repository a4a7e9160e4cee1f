"""Stepwell beside other servers with the same checkpoint: the same requests at loads 0.3, 1 and 2 of our capacity.

    python benchmarks/slo/compare.py --trace AzureLLMInferenceTrace_2023_code.csv --venvs DIR

``nested-lm`` in float32 everywhere, one thread a model operation, a fresh server a run, open loop over the Open
Inference Protocol. Load 1 is what ours serves at full quality, as the simulator has it; the classes are those of
``measure.py``. ``rivals/README.md`` says how the others are installed into DIR; those that are not are listed with the
reason. Writes ``benchmarks/results/slo_rivals.md``.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stepwell.schedulers.plan import Limits
from stepwell.serving.config import ModelConfig, SLOClass
from stepwell.serving.replay.load import Target, send_load
from stepwell.serving.replay.load_report import report
from stepwell.serving.replay.sim_model import open_sim_model
from stepwell.serving.replay.simulate import FULL_QUALITY, Setup, capacity
from stepwell.serving.replay.trace import read_trace
from stepwell.serving.replay.workload import Arrival, Workload

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, hardware
from contenders import DTYPE, MODEL, Contender, NotRunError, contenders, greedy_ids
from measure import FIRST_S, FITTING, SHARES, classes_of

TIMEOUT_S = 15.0
"""A request that takes longer is given up on."""
HEADER = (
    "load",
    "server",
    "attained",
    "goodput/s",
    "quality",
    "p50 s",
    "p99 s",
    "first token p50 s",
    "p99 s",
    "not served",
)
LEGEND = (
    "*Attained*: met, of all sent, by the client's clock from when each was due. *Goodput*: met, weighted by the "
    f"quality served at. *p50, p99*: whole answers, of what was served; who takes over {TIMEOUT_S:g} s is given up on "
    "and counts as not served, like who is refused. A server of whole answers gives its first token with the last."
)


def main() -> None:
    """See the module."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    model, source = open_sim_model(ModelConfig(MODEL, dtype=DTYPE), args.threads)
    classes = classes_of(model)
    setup = Setup(model, FULL_QUALITY, classes, Limits())
    trace = read_trace(args.trace).window(FIRST_S).fitted(model.context_length, FITTING).with_classes(SHARES)
    unit = args.capacity or capacity(trace.window(num_requests=600), setup)
    print(f"load 1 = {unit:.3g} requests/s, costs from {source}", file=sys.stderr)
    all_of_them = contenders(args.venvs, args.threads)
    present = [contender for contender in all_of_them if not contender.missing]
    reasons = {contender.name: contender.missing for contender in all_of_them if contender.missing}
    agreement = _agreement(present, reasons)
    present = [contender for contender in present if contender.name not in reasons]
    rows = []
    for load in args.loads:
        workload = trace.window(num_requests=max(20, round(load * unit * args.seconds))).at_rate(load * unit)
        found = {}
        for contender in random.Random(load).sample(present, len(present)):  # so that a drift favours nobody
            found[contender.name] = row = [f"{load:g}", contender.name, *_measured(contender, workload, classes)]
            print(" | ".join(row), file=sys.stderr)
        rows += [found[contender.name] for contender in present]
    notes = [
        f"Load 1 = {unit:.3g} requests/s; {args.seconds:g} s a run; {args.threads} thread(s) a model operation.",
        "; ".join(trace.notes) + ".",
        "; ".join(f"{name}: first token in {c.ttft_ms} ms, each in {c.tpot_ms}" for name, c in classes.items()) + ".",
        agreement, "", LEGEND, "",
        *(f"- *{contender.name}*: {contender.what}" for contender in all_of_them),
        *(f"- **not run**: {name}: {reason}" for name, reason in reasons.items()),
    ]  # fmt: skip
    _write(rows, notes)


def _agreement(present: Sequence[Contender], reasons: dict[str, str]) -> str:
    """Whether all generate the same for one prompt; those that do not start are added to ``reasons``."""
    answers = {}
    for contender in present:
        try:
            with contender.running() as address:
                answers[contender.name] = greedy_ids(address, contender)
        except NotRunError as error:
            reasons[contender.name] = str(error)
    ours = answers[present[0].name]
    apart = [name for name, ids in answers.items() if ids != ours]
    said = f"but for {', '.join(apart)}" if apart else f"{len(answers)} servers"
    return f"Greedy answers to one prompt ({len(ours)} tokens, full size, {DTYPE}) agree: {said}."


def _measured(contender: Contender, workload: Workload, classes: Mapping[str, SLOClass]) -> list[str]:
    try:
        with contender.running() as address:
            target = Target(
                address, MODEL, classes, unary=contender.unary, vocab_size=2048, timeout_s=TIMEOUT_S,
                slo_as="numbers" if contender.ours else "none",
            )  # fmt: skip
            warm = Workload.of("warm-up", [Arrival(0.15 * i, 40, 4, "relaxed", prefix=(2**40 + i,)) for i in range(12)])
            send_load(warm, replace(target, slo_as="none"))
            found = report(send_load(workload, target))
    except NotRunError as error:
        return [f"not run: {error}"] + [""] * (len(HEADER) - 3)
    summary, latency = found["summary"], found["latency"]["all"]
    unserved = summary["num_sent"] - summary["outcomes"]["met"] - summary["outcomes"]["missed"]
    return [
        f"{summary['attainment']:.1%}", f"{summary['goodput']:.2f}", _figure(summary["mean_quality"]),
        *(_figure(latency[key][name]) for key in ("total_s", "ttft_s") for name in ("p50", "p99")),
        f"{unserved} of {summary['num_sent']}",
    ]  # fmt: skip


def _write(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    lines = [f"## {MODEL} in several servers, Azure code", "", hardware(), ""]
    lines += [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER), *(f"| {' | '.join(row)} |" for row in rows)]
    text = "\n".join([*lines, "", *notes, ""])
    (RESULTS / "slo_rivals.md").write_text(text, encoding="utf-8")
    print(text)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, metavar="F", required=True, help="the Azure trace of code completions")
    parser.add_argument("--venvs", type=Path, metavar="DIR", required=True, help="environments of the rivals, by name")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load for each run (default 20)")
    parser.add_argument("--threads", type=int, default=1, help="of one model operation (default 1)")
    parser.add_argument("--capacity", type=float, metavar="R", help="requests/s at load 1 (default: simulate)")
    parser.add_argument("--loads", type=lambda text: [float(word) for word in text.split(",")], default=[0.3, 1.0, 2.0])
    return parser.parse_args()


if __name__ == "__main__":
    main()
