"""The 160 sub-networks of nested-vit: how many keep how much of the full model's accuracy, and at which cost.

python benchmarks/vision_supernet.py --save              writes the table and the plot, from what was measured
python benchmarks/vision_supernet.py --measure --save    measures all sub-networks again
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import torch
from common import RESULTS, arguments, report
from vision_models import evaluation, open_shipped, schedule_flops

from stepwell.models.ladder import load_ladders
from stepwell.models.one_shot import Item
from stepwell.models.training.vision.evaluate import accuracy_by_depth, held_out_scenes
from stepwell.models.training.vision.sampling import Dimensions, box
from stepwell.models.training.vision.scenes import normalise
from stepwell.models.vit.model import ViT
from stepwell.models.vit.tally import full_schedule

SHARES = (0.99, 0.98, 0.96, 0.9)
BATCH = 32


def stored() -> dict[Dimensions, float]:
    """Top-1 by dimensions, as measured when the model was made."""
    found = {}
    for name, value in evaluation("nested-vit")["top1"].items():
        depth, channels, heads = map(int, name.split("x"))
        found[depth, channels, heads] = float(value)
    return found


def measured_again(vit: ViT, like: Mapping[Dimensions, float]) -> dict[Dimensions, float]:
    """The same, measured now."""
    recipe = evaluation("nested-vit")["recipe"]
    scenes = held_out_scenes(recipe["seed"], recipe["num_held_out"])
    found = {}
    for channels, heads in sorted({dimensions[1:] for dimensions in like}):
        for depth, value in accuracy_by_depth(vit, scenes, channels, heads, recipe["depths"]).items():
            found[depth, channels, heads] = value
    return found


def flops_of(vit: ViT, dimensions: Dimensions) -> int:
    """Floating point operations of one image."""
    schedule = full_schedule(vit.config.base_grid.num_tokens, dimensions[0])
    return schedule_flops(vit.config, box(vit.config.architecture, dimensions), schedule)


def milliseconds(vit: ViT, chain: list[Dimensions], repeats: int) -> dict[Dimensions, float]:
    """Processor milliseconds an image in a batch, the least of ``repeats``; one run of each in turn."""
    pixels = normalise(held_out_scenes(0, BATCH).pixels)
    items = {d: [Item(image, box(vit.config.architecture, d)) for image in pixels] for d in chain}
    least = dict.fromkeys(chain, float("inf"))
    for _ in range(repeats + 1):
        for dimensions in chain:
            start = time.process_time()
            vit.run(items[dimensions], ["logits"])
            least[dimensions] = min(least[dimensions], (time.process_time() - start) * 1e3 / BATCH)
    return least


def default_chain() -> list[Dimensions]:
    """The default ladder's sub-networks."""
    from vision_models import shipped_folder

    folder = shipped_folder("nested-vit")
    vit, _ = open_shipped("nested-vit")
    ladders = load_ladders(folder / "ladder.json", vit.config.architecture)
    subnets = [level.subnet for level in ladders.ladders[ladders.default].levels]
    return [(subnet.depth, subnet.ffn_channels[0], subnet.kv_groups[0]) for subnet in subnets]


def table_rows(vit: ViT, found: Mapping[Dimensions, float], repeats: int) -> list[list[str]]:
    """The default ladder, smallest first."""
    full, chain = max(found), default_chain()
    times, whole = milliseconds(vit, chain, repeats), flops_of(vit, full)
    return [
        [
            str(d[0]),
            str(d[1]),
            str(d[2]),
            f"{flops_of(vit, d) / 1e6:.1f} ({flops_of(vit, d) / whole:.2f})",
            f"{times[d]:.3f} ({times[d] / times[full]:.2f})",
            f"{found[d]:.4f}",
            f"{found[d] / found[full]:.4f}",
        ]
        for d in chain
    ]


def summary(found: Mapping[Dimensions, float]) -> str:
    """How many sub-networks keep which share, and the accuracy of all as a grid."""
    full = found[max(found)]
    lines = [f"Of {len(found)} sub-networks, all in one set of weights:", ""]
    lines += [
        f"- {sum(v >= share * full for v in found.values())} keep at least {share:.0%} of the full model's accuracy"
        for share in SHARES
    ]
    widths = sorted({d[1] for d in found})
    lines += ["", "Top-1 of all:", "", "| layers | heads | " + " | ".join(f"{w} channels" for w in widths) + " |"]
    lines.append("|" + "---:|" * (len(widths) + 2))
    for depth, heads in sorted({(d[0], d[2]) for d in found}):
        values = " | ".join(f"{found[depth, width, heads]:.3f}" for width in widths)
        lines.append(f"| {depth} | {heads} | {values} |")
    return "\n".join(lines)


def plot(vit: ViT, found: Mapping[Dimensions, float]) -> None:
    """Accuracy over floating point operations: all, and the default ladder as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    for depth in sorted({d[0] for d in found}):
        mine = [d for d in found if d[0] == depth]
        axes.scatter(
            [flops_of(vit, d) / 1e6 for d in mine], [found[d] for d in mine], s=14, alpha=0.7, label=f"{depth} layers"
        )
    chain = default_chain()
    axes.plot([flops_of(vit, d) / 1e6 for d in chain], [found[d] for d in chain], "k-", lw=1, label="default ladder")
    axes.axhline(0.96 * found[max(found)], color="k", lw=0.8, ls=":")
    axes.set(xlabel="MFLOP an image", ylabel="top-1, held-out scenes")
    axes.set_title(f"One network, {len(found)} sub-networks (dotted: 96 % of the full one's accuracy)", fontsize=10)
    axes.grid(True, alpha=0.25)
    axes.legend()
    figure.savefig(RESULTS / "vision_supernet.png", dpi=130)
    plt.close(figure)


def main() -> int:
    """Read or measure, print, and save if asked."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--measure", action="store_true", help="measure all sub-networks again")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each level (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vit, _ = open_shipped("nested-vit")
    found = measured_again(vit, stored()) if args.measure else stored()
    header = [
        "layers",
        "FFN channels",
        "heads",
        "MFLOP an image (of full)",
        "ms an image (of full)",
        "top-1",
        "of full",
    ]
    notes = (
        f"The default ladder of nested-vit. Measured on {evaluation('nested-vit')['data']}. Time: processor time of "
        f"`ViT.run` for a batch of {BATCH}, the least of several runs in turn. `benchmarks/vision_supernet.py --save`."
        f"\n\n{summary(found)}"
    )
    rows = table_rows(vit, found, args.repeats)
    report("vision_supernet", "nested-vit: the sub-networks of one vision transformer", header, rows, notes, args.save)
    if args.save:
        plot(vit, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
