"""What a token budget saves, against what its operations promise: ``python benchmarks/token_budgets.py``.

A vision transformer of ViT-S's shapes (384 wide, 6 heads, 12 layers, 224 / 16: 197 tokens) with random weights. For
each reducer and budget: the measured speed-up over the full model, as a share of the ratio of floating point
operations; and a batch that mixes all budgets, against the sum of its parts run one budget at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from common import arguments, interleaved, report

from stepwell.models.ladder import Reduction
from stepwell.models.one_shot import Item
from stepwell.models.vit.config import ViTConfig
from stepwell.models.vit.model import ViT
from stepwell.models.vit.tally import flops

VIT_S = ViTConfig(
    hidden_size=384,
    num_layers=12,
    num_heads=6,
    ffn_channels=1536,
    image_size=(224, 224),
    patch_size=16,
    num_labels=1000,
)
BUDGETS = (0.25, 0.5, 0.75, 1.0)
SHAPE = (3, 224, 224)


def items_at(model: ViT, count: int, reducer: str, budget: float) -> list[Item]:
    """Images of noise."""
    generator = torch.Generator().manual_seed(count)
    reduction = Reduction(reducer, budget) if budget < 1.0 else None
    full = model.config.architecture.full
    return [Item(torch.randn(SHAPE, generator=generator), full, reduction) for _ in range(count)]


def measure(model: ViT, reducer: str, count: int, repeats: int) -> tuple[list[list[str]], str]:
    """A row a budget, and a mixed batch over the sum of its parts."""

    def run(items: Sequence[Item]) -> Callable[[], object]:
        return lambda: model.run(items, ("logits",))

    parts = {f"part {b}": run(items_at(model, count // len(BUDGETS), reducer, b)) for b in BUDGETS}
    whole = {f"at {b}": run(items_at(model, count, reducer, b)) for b in BUDGETS}
    mixed = [item for b in BUDGETS for item in items_at(model, count // len(BUDGETS), reducer, b)]
    seconds = interleaved({**whole, **parts, "mixed": run(mixed)}, repeats)
    arch = model.config.architecture
    full_flops = flops(model.config, arch.full, None, SHAPE)
    rows = []
    for budget in BUDGETS[:-1]:
        promise = full_flops / flops(model.config, arch.full, Reduction(reducer, budget), SHAPE)
        gain = seconds["at 1.0"] / seconds[f"at {budget}"]
        ms = 1e3 * seconds[f"at {budget}"] / count
        numbers = [f"{budget:g}", f"{ms:.1f}", f"{gain:.2f}", f"{promise:.2f}", f"{gain / promise:.2f}"]
        rows.append([reducer, str(count), *numbers])
    return rows, f"{reducer} x {count}: {seconds['mixed'] / sum(seconds[name] for name in parts):.2f}"


def main() -> None:
    """The table."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reducers", default="merge,cluster,super", help="of these")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = ViT(VIT_S).prepare_serving(1 << 30)
    rows, mixes = [], []
    for reducer in args.reducers.split(","):
        for count in (8, 32):
            found, mix = measure(model, reducer, count, args.repeats)
            rows += found
            mixes.append(mix)
    header = ["reducer", "images", "budget", "ms an image", "speed-up", "promise", "kept of it"]
    notes = (
        "Promise: floating point operations of the full model over those at the budget. Mixed batches of all four "
        f"budgets, over the sum of their parts: {'; '.join(mixes)}."
    )
    report("token_budgets", "Token budgets on ViT-S shapes, float32", header, rows, notes, args.save)


if __name__ == "__main__":
    main()
