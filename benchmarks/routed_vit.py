"""Accuracy of routed-vit against what it costs: trained routing and slimming, merging, and dropping tokens at random.

    python benchmarks/routed_vit.py --save    writes the table and the plot

Random dropping comes in two forms: ``random`` drops patches evenly at random before the first layer; ``random gates``
runs as many tokens in each layer as ``route`` does, but any.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from common import RESULTS, arguments, report
from torch import Tensor
from vision_models import open_shipped, schedule_flops

from stepwell.models.ladder import Reduction
from stepwell.models.one_shot import Item
from stepwell.models.training.vision.evaluate import accuracy, describe, held_out_scenes
from stepwell.models.training.vision.scenes import normalise
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.grid import Grid
from stepwell.models.vit.model import ViT
from stepwell.models.vit.reducers.base import LayerTokens, Pass, Reducer, Schedule, mean_share
from stepwell.models.vit.reducers.gates import Gate
from stepwell.models.vit.reducers.rows import gather_rows

BUDGETS = (0.2, 0.25, 0.33, 0.4, 0.5, 0.6, 0.75)
WAYS = ("route", "slim", "merge", "random gates", "random")
COLOURS = ("tab:blue", "tab:green", "tab:orange", "tab:gray", "tab:red")


class RandomDropping(Reducer):
    """Keeps an even random choice of the patches in all layers."""

    restores_patches = False

    def schedule(self, grid: Grid, num_layers: int, budget: float) -> Schedule:
        tokens = max(grid.num_prefix + 1, int(budget * grid.num_tokens))
        return (LayerTokens(tokens, tokens),) * num_layers

    def begin(self, grid: Grid, num_layers: int, budget: float) -> Pass:
        return _Drop(grid, self.schedule(grid, num_layers, budget)[0].attention)


class _Drop(Pass):
    def __init__(self, grid: Grid, num_tokens: int) -> None:
        super().__init__(grid)
        self.num_tokens = num_tokens

    def before_layer(self, layer: int, x_BTD: Tensor) -> Tensor:
        if layer:
            return x_BTD
        patches = torch.rand(len(x_BTD), self.grid.num_patches).argsort(1) + self.grid.num_prefix
        prefix = torch.arange(self.grid.num_prefix).expand(len(x_BTD), -1)
        index = torch.cat([prefix, patches[:, : self.num_tokens - self.grid.num_prefix]], 1)
        return gather_rows(x_BTD, index)


class RandomGate(Gate):
    """Scores that say nothing."""

    def forward(self, x_BTD: Tensor, num_prefix: int) -> Tensor:
        return torch.rand(len(x_BTD), x_BTD.shape[1] - num_prefix)


def add_random(vit: ViT, config: ViTConfig) -> None:
    """Give the model both random ways."""
    vit.reducers["random"] = RandomDropping(config, {})
    gates = copy.deepcopy(vit.reducers["route"])
    gates.gates = torch.nn.ModuleList(RandomGate(config.hidden_size, 1, 1e-6) for _ in range(config.num_layers))
    vit.reducers["random gates"] = gates.eval()


def milliseconds(vit: ViT, pixels: Tensor, points: Mapping[str, Reduction | None], repeats: int) -> dict[str, float]:
    """Processor milliseconds an image in a batch, the least of ``repeats``; one run of each in turn."""
    full = vit.config.architecture.full
    cases = {name: [Item(image, full, point) for image in pixels] for name, point in points.items()}
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(repeats + 1):
        for name, items in cases.items():
            start = time.process_time()
            vit.run(items, ["logits"])
            least[name] = min(least[name], (time.process_time() - start) * 1e3 / len(items))
    return least


def measure(count: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """One row for the full model, then one for every way and budget."""
    torch.manual_seed(0)
    vit, recipe = open_shipped("routed-vit")
    add_random(vit, vit.config)
    scenes = held_out_scenes(recipe["seed"], count)
    points: dict[str, Reduction | None] = {"full 1": None}
    points |= {f"{way} {b:g}": Reduction(way, b) for way in WAYS for b in BUDGETS}
    times = milliseconds(vit, normalise(scenes.pixels[:batch]), points, repeats)
    grid, subnet, rows = vit.config.base_grid, vit.config.architecture.full, []
    for name, point in points.items():
        print(f"  {name:20}", end="\r", file=sys.stderr)
        schedule = vit.schedule(subnet, point, grid)
        row = {"way": name.rpartition(" ")[0], "budget": point.budget if point else 1.0, "ms": times[name]}
        row |= {"tokens": mean_share(schedule, grid.num_tokens), "flops": schedule_flops(vit.config, subnet, schedule)}
        rows.append({**row, "top1": accuracy(vit, scenes, reduction=point)})
    return rows


def table_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Every row beside the full model."""
    full = rows[0]
    return [
        [
            row["way"],
            f"{row['budget']:g}",
            f"{row['tokens']:.3f}",
            f"{row['flops'] / 1e6:.1f} ({row['flops'] / full['flops']:.2f})",
            f"{row['ms']:.3f} ({row['ms'] / full['ms']:.2f})",
            f"{row['top1']:.4f}",
            f"{row['top1'] / full['top1']:.4f}",
        ]
        for row in rows
    ]


def plot(rows: list[dict[str, Any]]) -> None:
    """Accuracy over floating point operations and over measured time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4.0), layout="constrained", sharey=True)
    for axes, key, label in zip(panels, ("flops", "ms"), ("floating point operations", "measured time"), strict=True):
        for way, colour in zip(WAYS, COLOURS, strict=True):
            mine = [*(row for row in rows if row["way"] == way), rows[0]]
            axes.plot(
                [r[key] / rows[0][key] for r in mine], [r["top1"] for r in mine], "o-", ms=4, color=colour, label=way
            )
        axes.axhline(0.97 * rows[0]["top1"], color="k", lw=0.8, ls=":")
        axes.axvline(1 / 3, color="k", lw=0.8, ls=":")
        axes.set(xlabel=f"{label}, share of the full model's")
        axes.grid(True, alpha=0.25)
    panels[0].set_ylabel("top-1, held-out scenes")
    panels[0].legend()
    figure.savefig(RESULTS / "routed_vit.png", dpi=130)
    plt.close(figure)


def main() -> int:
    """Measure, print, and save if asked."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--scenes", type=int, default=4096, help="held-out scenes (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images in a timed batch (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each point (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args.scenes, args.batch, args.repeats)
    header = [
        "tokens chosen by",
        "budget",
        "tokens run",
        "MFLOP an image (of full)",
        "ms an image (of full)",
        "top-1",
        "of full",
    ]
    notes = (
        f"Measured on {describe(0, args.scenes)}. Time: processor time of `ViT.run` for a batch of {args.batch} at one "
        "operating point, the least of several runs in turn. FLOPs: the products of embedding and layers. Dotted in "
        "the plot: 97 % of the full model's accuracy, a third of its cost. `benchmarks/routed_vit.py --save`."
    )
    report("routed_vit", "routed-vit: accuracy against cost", header, table_rows(rows), notes, args.save)
    if args.save:
        plot(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
