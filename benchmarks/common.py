"""What the benchmarks share: the hardware line, interleaved medians, and tables that land in ``benchmarks/results``."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.schedulers import fill

RESULTS = Path(__file__).parent / "results"
COMPILED_PLANNER = not (fill.__file__ or "").endswith(".py")
"""Whether the planner that is imported is compiled: ``make compiled``."""


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of a torch operation")
    parser.add_argument("--save", action="store_true", help="also write the table to benchmarks/results")
    return parser


def hardware() -> str:
    """Processor, cores, threads and versions, for the head of a table."""
    cpu = platform.processor() or "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
        flags = next((line for line in lines if line.startswith("flags")), "")
        cpu += "".join(f", {name}" for name in ("avx512f", "avx512_bf16", "amx_tile") if f" {name}" in flags)
    count = len(lines and [line for line in lines if line.startswith("processor")]) if info.is_file() else 0
    return (
        f"{cpu}; {count or '?'} cores, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"Python {platform.python_version()}; {datetime.date.today().isoformat()}"
    )


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each case; one run of each in turn, so that a machine's drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for repeat in range(repeats):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
        print(f"  repeat {repeat + 1}/{repeats}", end="\r", file=sys.stderr)
    print(" " * 40, end="\r", file=sys.stderr)
    return {name: statistics.median(values) for name, values in seconds.items()}


def least_seconds(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Processor seconds of each case: the least of ``repeats``, one run of each in turn."""
    least = dict.fromkeys(cases, float("inf"))
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            start = time.process_time()
            case()
            if repeat:
                least[name] = min(least[name], time.process_time() - start)
        print(f"  repeat {repeat}/{repeats}", end="\r", file=sys.stderr)
    return least


def report(name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: str, save: bool) -> None:
    """Print a Markdown table with its hardware line, and write it to ``benchmarks/results/NAME.md`` if asked."""
    lines = [f"## {title}", "", hardware(), "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    text = "\n".join([*lines, "", notes, ""])
    print(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def random_decoder(config: DecoderConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> Decoder:
    """A decoder with small random weights."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if not name.endswith(("norm.weight", "layernorm.weight")):
                parameter.normal_(0.0, 0.02, generator=generator)
    return decoder.to(dtype)


LLAMA_110M = DecoderConfig(
    vocab_size=32_000,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    ffn_channels=2048,
    max_positions=2048,
    tied_embeddings=True,
)
"""A Llama-shaped model of 110 million parameters."""


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int(path.read_text().split()[0])
    return total / 1e9
