"""The measurements behind two decisions of the CPU path: ``python benchmarks/kernels.py``.

Linear: weights packed for oneDNN against plain ``F.linear``, at few and many rows. Attention: one query over a long
context with keys in float32 or bfloat16, laid out head by head or token by token. Weights and keys are rotated so that
they come from memory, not from the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import arguments, interleaved, report
from torch import Tensor

from stepwell.models.kernels.linear import SliceLinear

HIDDEN, CHANNELS, NUM_WEIGHTS = 768, 2048, 24
HEADS, HEAD_DIM, CONTEXT, NUM_SEQUENCES = 12, 64, 700, 48


def linear_rows(dtype: torch.dtype, repeats: int) -> list[list[str]]:
    """Microseconds per product of [rows, 768] with [2048, 768], plain and packed."""
    layers = [torch.nn.Linear(HIDDEN, CHANNELS, bias=False).to(dtype).requires_grad_(False) for _ in range(NUM_WEIGHTS)]
    packed = SliceLinear(budget_bytes=4 << 30)
    rows = []
    for num_rows in (1, 8, 32, 128, 512):
        x = torch.randn(num_rows, HIDDEN).to(dtype)
        seconds = interleaved(
            {
                "plain": lambda x=x: [F.linear(x, layer.weight) for layer in layers],
                "packed": lambda x=x: [packed.rows(x, [(layer, 0, CHANNELS)]) for layer in layers],
            },
            repeats,
        )
        us = {name: 1e6 * value / NUM_WEIGHTS for name, value in seconds.items()}
        figures = [f"{us['plain']:.0f}", f"{us['packed']:.0f}", f"{us['plain'] / us['packed']:.2f}"]
        rows.append([_name(dtype), str(num_rows), *figures])
    return rows


def attention_rows(repeats: int) -> list[list[str]]:
    """Microseconds per call of one query over CONTEXT keys, by layout and type of the cache."""
    cases: dict[str, Callable[[], object]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        by_head = torch.randn(2, HEADS, NUM_SEQUENCES * CONTEXT, HEAD_DIM).to(dtype)
        by_token = by_head.transpose(1, 2).contiguous().transpose(1, 2)
        q = torch.randn(1, HEADS, 1, HEAD_DIM).to(dtype)
        cases[f"{_name(dtype)}, head by head"] = lambda kv=by_head, q=q: _attend(kv, q)
        cases[f"{_name(dtype)}, token by token"] = lambda kv=by_token, q=q: _attend(kv, q)
    seconds = interleaved(cases, repeats)
    best = min(seconds.values())
    return [[name, f"{1e6 * value / NUM_SEQUENCES:.0f}", f"{value / best:.2f}"] for name, value in seconds.items()]


def _attend(kv_2HSd: Tensor, q: Tensor) -> None:
    for i in range(NUM_SEQUENCES):
        k, v = kv_2HSd[:, None, :, i * CONTEXT : (i + 1) * CONTEXT]
        F.scaled_dot_product_attention(q, k, v)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()
def main() -> None:
    """Print both tables."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report(
        "linear",
        f"Linear [rows, {HIDDEN}] x [{HIDDEN}, {CHANNELS}]: weights packed for oneDNN or plain",
        ["", "rows", "plain us", "packed us", "ratio"],
        linear_rows(torch.float32, options.repeats) + linear_rows(torch.bfloat16, options.repeats),
        f"{NUM_WEIGHTS} weights in turn. Medians, interleaved.",
        options.save,
    )
    report(
        "attention",
        f"Decode attention: one query, {HEADS} heads of {HEAD_DIM}, {CONTEXT} keys",
        ["keys and values", "us per call", "/ best"],
        attention_rows(options.repeats),
        f"{NUM_SEQUENCES} sequences in turn. Medians, interleaved.",
        options.save,
    )


if __name__ == "__main__":
    main()
