"""Finished tokens per second of continuous batching against a padded static batch: ``python benchmarks/generate.py``.

The same random 110M-parameter Llama-shaped weights, prompts (64 to 1024 tokens), output lengths (16 to 256), data type
and threads. transformers' ``generate`` runs batches of N left-padded prompts until the longest output is complete;
Stepwell keeps N sequences running. Only the tokens a request asked for count.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from common import LLAMA_110M, arguments, random_decoder, report
from transformers import LlamaConfig, LlamaForCausalLM

from stepwell.models.cache import PagedKVCache
from stepwell.models.decoder import Decoder
from stepwell.models.ladder import unmeasured_ladders
from stepwell.models.sampling import SamplingParams
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import create_policy
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.engine.engine import Engine
from stepwell.serving.engine.events import FinishEvent, TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.runner import DecoderRunner

PAGE_TOKENS = 32
FULL = OperatingPoint(cost=1.0, quality=1.0, ladder="default", level=0)


@dataclass(frozen=True)
class Load:
    """Prompts and how many tokens each asks for."""

    prompts: list[list[int]]
    lengths: list[int]

    @classmethod
    def ragged(cls, num_requests: int, seed: int) -> Load:
        """Uniform prompt lengths 64..1024 and output lengths 16..256."""
        draw = random.Random(seed)
        sizes = [draw.randint(64, 1024) for _ in range(num_requests)]
        prompts = [[draw.randrange(LLAMA_110M.vocab_size) for _ in range(size)] for size in sizes]
        return cls(prompts, [draw.randint(16, 256) for _ in prompts])


def run_stepwell(decoder: Decoder, load: Load, concurrency: int) -> tuple[float, list[list[int]]]:
    """Seconds and output ids."""
    config = decoder.config
    blocks = sum(-(-(len(p) + n) // PAGE_TOKENS) for p, n in zip(load.prompts, load.lengths, strict=True))
    num_pages = blocks * config.num_layers
    cache = PagedKVCache(config.num_layers, config.num_kv_heads, config.head_dim, num_pages, PAGE_TOKENS)
    limits = Limits(max_step_tokens=512, max_running=concurrency)
    engine = Engine(
        runner=DecoderRunner(decoder, cache),
        cache=cache,
        policy=create_policy("max_quality", limits),
        tokenizer=None,
        ladders=unmeasured_ladders(config.architecture),
        limits=limits,
        eos_token_ids=(),
    )
    outputs: list[list[int]] = [[] for _ in load.prompts]

    def sink(event: TokenEvent | FinishEvent) -> None:
        if isinstance(event, TokenEvent):
            outputs[int(event.request_id)].extend(event.token_ids)

    start = time.perf_counter()
    for index, (prompt, length) in enumerate(zip(load.prompts, load.lengths, strict=True)):
        request = Request(str(index), time.monotonic(), SLO(), (FULL,), len(prompt), length)
        engine.submit(GenerationJob(request, tuple(prompt), SamplingParams(), ignore_eos=True), sink)
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start, outputs


@torch.inference_mode()
def run_transformers(model: LlamaForCausalLM, load: Load, batch: int) -> tuple[float, list[list[int]]]:
    """Seconds and output ids, cut to the length each request asked for."""
    outputs = []
    start = time.perf_counter()
    for first in range(0, len(load.prompts), batch):
        prompts, lengths = load.prompts[first : first + batch], load.lengths[first : first + batch]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=max(lengths), do_sample=False, eos_token_id=None, pad_token_id=0
        )
        outputs += [row[width : width + length].tolist() for row, length in zip(made, lengths, strict=True)]
    return time.perf_counter() - start, outputs


def reference(decoder: Decoder) -> LlamaForCausalLM:
    """transformers' model with the decoder's weights."""
    config = decoder.config
    hf = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        intermediate_size=config.ffn_channels,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(hf)
    model = model.to_empty(device="cpu").to(decoder.dtype).eval()
    model.load_state_dict(decoder.state_dict(), strict=False)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(hf)
    return model


def shared_prefix(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> float:
    """Share of tokens before the first that differs, over all requests: 1 = the same outputs."""
    same = total = 0
    for a, b in zip(ours, theirs, strict=True):
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        total += len(a)
    return same / total


def row(
    name: str, concurrency: int, repeats: int, decoder: Decoder, model: LlamaForCausalLM, rounds: float
) -> list[str]:
    """Both engines on the same load, in turn."""
    load = Load.ragged(max(4, int(concurrency * rounds)), seed=concurrency)
    seconds: list[tuple[float, float]] = []
    agreement = 0.0
    for _ in range(repeats):
        print(f"{name}, {concurrency} concurrent, {len(load.prompts)} requests ...", file=sys.stderr)
        ours, our_ids = run_stepwell(decoder, load, concurrency)
        theirs, their_ids = run_transformers(model, load, concurrency)
        seconds.append((ours, theirs))
        agreement = shared_prefix(our_ids, their_ids)
    speeds = [f"{sum(load.lengths) / statistics.median(column):.1f}" for column in zip(*seconds, strict=True)]
    ratio = statistics.median(theirs / ours for ours, theirs in seconds)
    return [name, str(concurrency), str(len(load.prompts)), *speeds, f"{ratio:.2f}", f"{agreement:.3f}"]


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=float, default=2.0, help="requests per concurrent slot")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        decoder = random_decoder(LLAMA_110M, dtype)
        model = reference(decoder)
        decoder.prepare_serving(packed_bytes=2 << 30)
        for concurrency in options.concurrency:
            rows.append(row(name, concurrency, options.repeats, decoder, model, options.rounds))
    report(
        "generate",
        "Finished tokens per second, 110M-parameter Llama shape, ragged prompts and outputs",
        [
            "",
            "concurrent",
            "requests",
            "Stepwell",
            "transformers `generate`",
            "ratio",
            "equal before the first difference",
        ],
        rows,
        "Prompts 64..1024, outputs 16..256 tokens, greedy, random weights; prefill included in the time.",
        options.save,
    )


if __name__ == "__main__":
    main()
