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
PROMPTS = (96, 48, 128, 64, 112, 80, 40, 104)
"""Tokens of the prompts in a mixed batch, one request a level."""


def subnet(layers: int, channels: int) -> SubNetwork:
    """The first ``layers`` layers with ``channels`` FFN channels each."""
    full = CONFIG.num_layers
    return SubNetwork(
        tuple(CONFIG.num_kv_heads if i < layers else 0 for i in range(full)),
        tuple(channels if i < layers else 0 for i in range(full)),
    )


LADDERS = {
    "depth": [subnet(n, 2048) for n in range(1, 9)],
    "FFN width": [subnet(8, w) for w in range(256, 2049, 256)],
    "depth and width": [subnet(n, w) for n in (2, 4, 6, 8) for w in (256 * n - 256, 256 * n)],
}
"""Eight nested levels each."""


class Bench:
    """A decoder with a cache, and batches on it that can be run again and again."""

    def __init__(self, decoder: Decoder, widths: Sequence[int] = ()) -> None:
        self.decoder = decoder.prepare_serving(PACKED_BYTES, widths)
        config = decoder.config
        self.cache = PagedKVCache(config.num_layers, config.num_kv_heads, config.head_dim, 4096)

    def batch(
        self, subnets: Sequence[SubNetwork], num_tokens: Sequence[int], context: int = 0
    ) -> Callable[[], torch.Tensor]:
        """A call that runs ``num_tokens[i]`` tokens of sequence i after ``context`` cached ones."""
        generator = torch.Generator().manual_seed(1)
        sequences = []
        for chosen, length in zip(subnets, num_tokens, strict=True):
            pages = self.cache.open(chosen, expected_tokens=context + length)
            self.cache.reserve(pages, context + length)
            ids = torch.randint(0, self.decoder.config.vocab_size, (length,), generator=generator).tolist()
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
                "laddered": laddered.batch([chosen] * sequences, [tokens] * sequences, context),
                "plain": plain.batch([plain_full] * sequences, [tokens] * sequences, context),
            }
            seconds = interleaved(cases, repeats if tokens > 1 else 5 * repeats)
            what = f"{chosen.depth} layers, {chosen.ffn_channels[0]} channels"
            ms = [f"{1e3 * seconds[name]:.1f}" for name in ("laddered", "plain")]
            rows.append([_short(dtype), shape, what, *ms, f"{seconds['laddered'] / seconds['plain']:.3f}"])
            laddered.clear()
            plain.clear()
    return rows


def mixing_rows(config: DecoderConfig, dtype: torch.dtype, repeats: int) -> list[list[str]]:
    """Mixed batches of prefill size against the ideal and the two alternatives."""
    rows = []
    bench = Bench(random_decoder(config, dtype), range(256, 2049, 256))
    for name, levels in LADDERS.items():
        lengths = PROMPTS[: len(levels)]
        cases: dict[str, Callable[[], object]] = {
            f"uniform {k}": bench.batch([level] * len(levels), lengths) for k, level in enumerate(levels)
        }
        cases["mixed"] = bench.batch(levels, lengths)
        parts = [bench.batch([level], [length]) for level, length in zip(levels, lengths, strict=True)]
        cases["per level"] = lambda parts=parts: [part() for part in parts]
        seconds = interleaved(cases, repeats)
        ideal = sum(seconds[f"uniform {k}"] * length for k, length in enumerate(lengths)) / sum(lengths)
        everyone, mixed = seconds[f"uniform {len(levels) - 1}"], seconds["mixed"]
        ratios = (mixed / ideal, mixed / seconds["per level"], mixed / everyone, ideal / everyone)
        rows.append([_short(dtype), name, f"{1e3 * mixed:.0f}", *(f"{ratio:.2f}" for ratio in ratios)])
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
        f"Mixed batches ({shape}): eight prompts of 40 to 128 tokens, one a level",
        ["", "ladder", "mixed ms", "/ ideal", "/ one batch a level", "/ all full size", "ideal / full"],
        [row for dtype in dtypes for row in mixing_rows(CONFIG, dtype, options.repeats)],
        "Ideal: every request at its tokens' share of a batch in which all eight run its own sub-network, so with the "
        "efficiency of a large batch. Medians, interleaved.",
        options.save,
    )


if __name__ == "__main__":
    main()
