"""What the staircase costs and saves: ``python benchmarks/staircase.py``.

Tax: a batch whose members share a level, on the laddered model, against a plain model that is just that sub-network
(its weights cut out, no ladder). Mixing: requests at different levels in one batch, against the ideal (each request at
the per-request price of a uniform batch of its own level), one batch per level, and everyone at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from common import LLAMA_110M, arguments, interleaved, random_decoder, report

from stepwell.models.cache import PagedKVCache
from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.models.ladder import SubNetwork
from stepwell.models.packed import PackedBatch, PackedSequence

CONFIG = replace(LLAMA_110M, num_layers=8, vocab_size=2048)
PACKED_BYTES = 4 << 30


def subnet(layers: int, channels: int) -> SubNetwork:
    """The first ``layers`` layers with ``channels`` FFN channels each."""
    full = CONFIG.num_layers
    return SubNetwork(
        tuple(CONFIG.num_kv_heads if i < layers else 0 for i in range(full)),
        tuple(channels if i < layers else 0 for i in range(full)),
    )


LADDERS = {
    "depth": [subnet(n, 2048) for n in (2, 4, 6, 8)],
    "FFN width": [subnet(8, w) for w in (512, 1024, 1536, 2048)],
    "depth and width": [subnet(n, w) for n, w in ((2, 512), (4, 512), (4, 1024), (6, 1024), (6, 2048), (8, 2048))],
}


class Bench:
    """A decoder with a cache, and batches on it that can be run again and again."""

    def __init__(self, decoder: Decoder, widths: Sequence[int] = ()) -> None:
        self.decoder = decoder.prepare_serving(PACKED_BYTES, widths)
        config = decoder.config
        self.cache = PagedKVCache(config.num_layers, config.num_kv_heads, config.head_dim, 4096)

    def batch(self, subnets: Sequence[SubNetwork], num_tokens: int, context: int) -> Callable[[], torch.Tensor]:
        """A call that runs ``num_tokens`` tokens a sequence after ``context`` cached ones."""
        generator = torch.Generator().manual_seed(1)
        sequences = []
        for chosen in subnets:
            pages = self.cache.open(chosen, expected_tokens=context + num_tokens)
            self.cache.reserve(pages, context + num_tokens)
            ids = torch.randint(0, self.decoder.config.vocab_size, (num_tokens,), generator=generator).tolist()
            sequences.append(PackedSequence(ids, context, chosen, pages, True))
        return lambda: self.decoder(PackedBatch.pack(sequences, self.cache))

    def clear(self) -> None:
        """Free all pages."""
        config = self.decoder.config
        self.cache = PagedKVCache(config.num_layers, config.num_kv_heads, config.head_dim, 4096)


def plain_model(full: Decoder, chosen: SubNetwork) -> Decoder:
    """A decoder that is ``chosen`` and nothing else: its weights cut out of ``full``."""
    layers, channels = chosen.depth, chosen.ffn_channels[0]
    decoder = Decoder(replace(full.config, num_layers=layers, ffn_channels=channels)).to(full.dtype)
    source = full.state_dict()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            weight = source[name]
            parameter.copy_(weight[tuple(slice(size) for size in parameter.shape)])
    return decoder


def tax_rows(config: DecoderConfig, dtype: torch.dtype, repeats: int) -> list[list[str]]:
    """Uniform batches: laddered model over plain model."""
    rows = []
    full = random_decoder(config, dtype)
    laddered = Bench(full, (512, 1024, 1536, 2048))
    for chosen in (subnet(8, 2048), subnet(4, 2048), subnet(8, 1024)):
        plain = Bench(plain_model(full, chosen))
        plain_full = plain.decoder.config.architecture.full
        for shape, sequences, tokens, context in (("prefill", 8, 128, 0), ("decode", 16, 1, 200)):
            cases = {
                "laddered": laddered.batch([chosen] * sequences, tokens, context),
                "plain": plain.batch([plain_full] * sequences, tokens, context),
            }
            seconds = interleaved(cases, repeats if tokens > 1 else 5 * repeats)
            what = f"{chosen.depth} layers, {chosen.ffn_channels[0]} channels"
            ms = [f"{1e3 * seconds[name]:.1f}" for name in ("laddered", "plain")]
            rows.append([_short(dtype), shape, what, *ms, f"{seconds['laddered'] / seconds['plain']:.3f}"])
            laddered.clear()
            plain.clear()
    return rows


def mixing_rows(config: DecoderConfig, dtype: torch.dtype, tokens: int, repeats: int) -> list[list[str]]:
    """Mixed batches of prefill size against the ideal and the two alternatives."""
    rows = []
    bench = Bench(random_decoder(config, dtype), (512, 1024, 1536, 2048))
    for name, levels in LADDERS.items():
        each = 2
        cases: dict[str, Callable[[], object]] = {
            f"uniform {k}": bench.batch([level] * each * len(levels), tokens, 0) for k, level in enumerate(levels)
        }
        cases["mixed"] = bench.batch([level for level in levels for _ in range(each)], tokens, 0)
        parts = [bench.batch([level] * each, tokens, 0) for level in levels]
        cases["per level"] = lambda parts=parts: [part() for part in parts]
        seconds = interleaved(cases, repeats)
        ideal = sum(seconds[f"uniform {k}"] for k in range(len(levels))) / len(levels)
        everyone = seconds[f"uniform {len(levels) - 1}"]
        mixed = seconds["mixed"]
        ratios = (mixed / ideal, mixed / seconds["per level"], mixed / everyone, ideal / everyone)
        shape = f"{each * len(levels)} x {tokens}"
        rows.append([_short(dtype), name, shape, f"{1e3 * mixed:.0f}", *(f"{ratio:.2f}" for ratio in ratios)])
        bench.clear()
    return rows


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def main() -> None:
    """Print both tables."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtypes = (torch.float32, torch.bfloat16)
    shape = f"{CONFIG.num_layers} layers, {CONFIG.hidden_size} wide, {CONFIG.ffn_channels} channels"
    report(
        "staircase_tax",
        f"Staircase tax: uniform batches, laddered over plain model ({shape})",
        ["", "batch", "sub-network", "laddered ms", "plain ms", "ratio"],
        [row for dtype in dtypes for row in tax_rows(CONFIG, dtype, options.repeats)],
        "Prefill: 8 x 128 tokens. Decode: 16 x 1 token after 200. The plain model holds just that sub-network's "
        "weights and no ladder. Medians, interleaved.",
        options.save,
    )
    report(
        "staircase_mixing",
        f"Mixed batches ({shape}): two requests a level",
        ["", "ladder", "requests", "mixed ms", "/ ideal", "/ one batch a level", "/ all full size", "ideal / full"],
        [row for dtype in dtypes for row in mixing_rows(CONFIG, dtype, 128, options.repeats)],
        "Ideal: every request at its share of a uniform batch of its own level (as many requests as the mixed batch), "
        "so with the efficiency of a large batch. Medians, interleaved.",
        options.save,
    )


if __name__ == "__main__":
    main()
