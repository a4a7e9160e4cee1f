"""Sorted training beside plain training and truncation: quality against cost. Writes the table and plot in ``docs/``.

    python benchmarks/nested_vs_truncated.py                    train both (over an hour on two CPU cores)
    python benchmarks/nested_vs_truncated.py --checkpoints DIR  measure DIR/sorted and DIR/plain again

Training goes on where an interrupted call stopped; a run that is already done is not repeated.

Both networks see the same text in the same order for the same number of optimiser steps, with the same seed and
learning rates. Sorted training splits the tokens of a step among sampled sub-networks; plain training gives all of
them to the full network, which is then cut to the first n layers and the first w FFN channels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stepwell.models.loader import open_model
from stepwell.models.training.config import NestedConfig, Sampling
from stepwell.models.training.levels import best_chain, layer_parameters
from stepwell.models.training.nested import MODEL_FOLDER, run_steps, train
from stepwell.models.training.progress import Progress
from stepwell.models.training.publish import EVALUATION_FILE, evaluate_held_out, parse_grid
from stepwell.models.training.text import TrainingText, prepare_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, RESULTS, PLOT = DOCS / "nested_training.md", DOCS / "nested_vs_truncated.json", DOCS / "nested_vs_truncated.png"
BEGIN, END = "<!-- begin: nested_vs_truncated.py -->\n", "<!-- end: nested_vs_truncated.py -->"
KINDS: tuple[Sampling, Sampling] = ("sorted", "plain")
TIMED_STEPS = 12


def main() -> int:
    """Train or load both networks, measure them, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/nested_vs_truncated"), help="where runs are kept")
    parser.add_argument("--checkpoints", type=Path, help="measure the runs in this folder instead of training")
    parser.add_argument("--steps", type=int, default=NestedConfig.num_steps, help="optimiser steps of each run")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args()
    folder = args.checkpoints or args.output
    if args.checkpoints is None:
        for kind in KINDS:
            _train_if_needed(NestedConfig(output=folder / kind, sampling=kind, num_steps=args.steps))
    results = compare(folder, measure_again=args.checkpoints is not None)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_page(table(results))
    plot(results)
    print(json.dumps(results) if args.json else table(results))
    return 0


def compare(folder: Path, measure_again: bool) -> dict[str, Any]:
    """Both runs' measurements on the held-out text, theirs or new ones; returns the content of the results file."""
    stored = {kind: _evaluation(folder / kind) for kind in KINDS}
    configs = {kind: NestedConfig.from_json(stored[kind]["recipe"], output=folder / kind) for kind in KINDS}
    text = prepare_text(configs["sorted"])
    found = {kind: _measure(configs[kind], text) for kind in KINDS} if measure_again else stored
    grid = parse_grid(found["sorted"]["bits_per_byte"])
    attention, channel = layer_parameters(configs["sorted"])
    return {
        "data": found["sorted"]["data"],
        "bits_per_byte": {kind: found[kind]["bits_per_byte"] for kind in KINDS},
        "layer_parameters": {
            f"{depth}x{width}": depth * (attention + width * channel) for depth, width in sorted(grid)
        },
        "default_chain": best_chain(grid, attention, channel),
        "recipe": configs["sorted"].to_json(),
        "cpu_s_per_step": {kind: round(step_cpu_s(config, text), 3) for kind, config in configs.items()},
        "machine": f"{os.cpu_count()} CPU cores, torch {torch.__version__}",
    }


def step_cpu_s(config: NestedConfig, text: TrainingText) -> float:
    """CPU seconds of an optimiser step: the mean over short and long contexts, the first (warming up) left out."""
    with tempfile.TemporaryDirectory() as output:
        short = replace(config, output=Path(output), num_steps=TIMED_STEPS)
        ends = []
        run_steps(short, text, lambda _: ends.append(time.process_time()))
        return (ends[-1] - ends[0]) / (TIMED_STEPS - 1)


def table(results: dict[str, Any]) -> str:
    """The results in Markdown: what sorted training gains and loses, then every sub-network."""
    ours, cut = (parse_grid(results["bits_per_byte"][kind]) for kind in KINDS)
    top = max(ours)
    wins = sum(ours[point] < cut[point] for point in ours if point != top)
    cpu_s = results["cpu_s_per_step"]
    recipe = results["recipe"]
    budget = f"{recipe['num_steps']} optimiser steps of {recipe['tokens_per_step']} tokens each"
    lines = [
        f"Measured on {results['data']}; {budget}; {results['machine']}.",
        "",
        f"- Sorted training is better at {wins} of {len(ours) - 1} smaller sub-networks.",
        f"- At the full network it has {ours[top] / cut[top] - 1:+.2%} bits per byte.",
        f"- A step costs {cpu_s['sorted']:.2f} CPU seconds sorted, {cpu_s['plain']:.2f} plain.",
        "",
        "| layers | FFN channels | parameters in layers | sorted | plain, truncated | in `default` |",
        "|---:|---:|---:|---:|---:|:-:|",
    ]
    chain = {tuple(point) for point in results["default_chain"]}
    for depth, width in sorted(ours, reverse=True):
        size = results["layer_parameters"][f"{depth}x{width}"] / 1e6
        mark = "yes" if (depth, width) in chain else ""
        values = f"{ours[depth, width]:.3f} | {cut[depth, width]:.3f}"
        lines.append(f"| {depth} | {width} | {size:.2f} M | {values} | {mark} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any]) -> None:
    """Bits per byte over parameters: all sub-networks, and the default ladder as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    sizes = {tuple(map(int, key.split("x"))): value / 1e6 for key, value in results["layer_parameters"].items()}
    chain = [tuple(point) for point in results["default_chain"]]
    for kind, colour, label in (("sorted", "tab:blue", "sorted"), ("plain", "tab:red", "plain, truncated")):
        grid = parse_grid(results["bits_per_byte"][kind])
        axes.scatter([sizes[p] for p in grid], list(grid.values()), s=14, alpha=0.45, color=colour, linewidths=0)
        axes.plot([sizes[p] for p in chain], [grid[p] for p in chain], "o-", ms=4, color=colour, label=label)
    axes.set(xlabel="parameters in layers (millions)", ylabel="bits per byte, held out", yscale="log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.1f"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.1f"))
    axes.set_title("One network, 32 sub-networks (lines: the default ladder)", fontsize=10)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(PLOT, dpi=130)
    plt.close(figure)


def write_page(content: str) -> None:
    """Put the table between the markers of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{content}{END}{after}", encoding="utf-8")


def _train_if_needed(config: NestedConfig) -> None:
    """Raises ValueError if the folder holds a run of another recipe that is not finished."""
    finished = (config.output / MODEL_FOLDER / EVALUATION_FILE).is_file()
    if not finished or _evaluation(config.output)["recipe"] != config.to_json():
        train(config, _report)


def _evaluation(run: Path) -> dict[str, Any]:
    """What a finished run measured, and its recipe."""
    document = json.loads((run / MODEL_FOLDER / EVALUATION_FILE).read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def _measure(config: NestedConfig, text: TrainingText) -> dict[str, Any]:
    loaded = open_model(str(config.output / MODEL_FOLDER), torch.float32)
    return evaluate_held_out(config, loaded.decoder, text)


def _report(progress: Progress) -> None:
    if progress.step % 20 == 0:
        print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
