"""What a token budget buys: a ViT-S at each reducer and budget, against what its floating point operations promise;
and a batch of mixed budgets against its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from common import arguments, least_seconds, report
from torch import Tensor

from stepwell.models.ladder import Reduction
from stepwell.models.one_shot import Item
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.model import ViT
from stepwell.models.vit.tally import flops, reducer_flops

VIT_S = ViTConfig(384, 12, 6, 1536, (224, 224), 16, num_labels=1000, reducer_settings={"slim": {}, "route": {}})
SHAPE = (3, 224, 224)
REDUCERS = ("merge", "cluster", "super", "slim", "route")
POINTS = [None, *(Reduction(name, b) for name in REDUCERS for b in (0.75, 0.5, 0.25))]
BATCHES = (8, 32)


def random_vit(config: ViTConfig) -> ViT:
    """A vision transformer with random weights, ready to serve."""
    torch.manual_seed(0)
    vit = ViT(config)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.04)
    return vit.prepare_serving(1 << 28)


def name_of(point: Reduction | None) -> str:
    """As the table has it."""
    return f"{point.reducer} {point.budget:g}" if point else "full"


def run(vit: ViT, images: Sequence[Tensor], points: Sequence[Reduction | None]) -> Callable[[], object]:
    """A step of these images, each at the next of these points."""
    full = vit.config.architecture.full
    items = [Item(image, full, points[i % len(points)]) for i, image in enumerate(images)]
    return lambda: vit.run(items, ["logits"])


def rows_of(vit: ViT, batch: int, repeats: int) -> list[list[str]]:
    """The table's rows for batches of so many images."""
    images = list(torch.randn(batch, *SHAPE))
    cases = {name_of(point): run(vit, images, [point]) for point in POINTS}
    mixed = [POINTS[i % len(POINTS)] for i in range(batch)]
    for point in dict.fromkeys(mixed):
        members = [image for image, its in zip(images, mixed, strict=True) if its == point]
        cases[f"part {name_of(point)}"] = run(vit, members, [point])
    cases["mixed"] = run(vit, images, mixed)
    seconds = least_seconds(cases, repeats)
    full = vit.config.architecture.full
    whole = flops(vit.config, full, None, SHAPE)
    rows = []
    for point in POINTS:
        network, method = (count(vit.config, full, point, SHAPE) for count in (flops, reducer_flops))
        speed_up = seconds["full"] / seconds[name_of(point)]
        cells = [f"{seconds[name_of(point)] * 1e3 / batch:.1f}", f"{speed_up:.2f}"]
        for promise in (whole / network, whole / (network + method)):
            cells += [f"{promise:.2f}", f"{speed_up / promise:.2f}"]
        rows.append([str(batch), name_of(point), *cells])
    parts = sum(value for name, value in seconds.items() if name.startswith("part"))
    last = [f"{seconds['mixed'] * 1e3 / batch:.1f}", f"{seconds['mixed'] / parts:.2f} of its parts", "", "", "", ""]
    return [*rows, [str(batch), "mixed", *last]]


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vit = random_vit(VIT_S)
    rows = [row for batch in BATCHES for row in rows_of(vit, batch, options.repeats)]
    report(
        "token_budgets",
        "ViT-S/16 at 224 x 224: token budgets, measured and promised",
        [
            "images",
            "reducer, budget",
            "ms an image",
            "speed-up",
            "promise of the network",
            "of it",
            "with the method's own",
            "of it",
        ],
        rows,
        f"Random weights and gates, float32. Processor time, the least of {options.repeats}, interleaved. Promises are "
        "quotients of floating point operations: of the network's products alone, and with those that the reducer's "
        "published method takes itself. Mixed: all points in turn in one batch, against the sum of a batch for each "
        "point with the same images.",
        options.save,
    )


if __name__ == "__main__":
    main()
