"""Generate text once, in this process, without a server.

The text goes to standard output as it comes; what was served goes to standard error. With --json both are one
document on standard output.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from stepwell.serving.cli.output import add_json_option, print_json, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepwell.serving.client_types import Chunk, Report

HELP = "generate text once, without a server"
_OPTIONS = (
    *("max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "ignore_eos"),
    *("slo_ms", "ttft_ms", "tpot_ms", "min_quality", "operating_point"),
)
_LATENCIES = ("slo_ms", "ttft_ms", "tpot_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell generate``."""
    parser.add_argument("model", metavar="MODEL", help="a directory, a hub id, or a shipped model such as nested-lm")
    parser.add_argument("prompt", metavar="PROMPT", help="text to go on from; - reads it from standard input")
    needs = parser.add_argument_group("what the request needs")
    needs.add_argument("--slo-ms", type=float, metavar="MS", help="latency of the whole answer")
    needs.add_argument("--ttft-ms", type=float, metavar="MS", help="time to the first token")
    needs.add_argument("--tpot-ms", type=float, metavar="MS", help="time per token after the first")
    needs.add_argument("--min-quality", type=float, metavar="Q", help="quality floor relative to the full model")
    needs.add_argument(
        "--operating-point", metavar="P", help="serve exactly there: LADDER:LEVEL, max or min (see stepwell ladder)"
    )
    sampling = parser.add_argument_group("how tokens are chosen")
    sampling.add_argument("--max-tokens", type=int, metavar="N", help="tokens to generate at most (default 256)")
    sampling.add_argument("--temperature", type=float, metavar="T", help="0 (the default) takes the most likely token")
    sampling.add_argument("--top-k", type=int, metavar="K", help="choose among the K most likely; 0 = all")
    sampling.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that sum to P, (0, 1]")
    sampling.add_argument("--seed", type=int, metavar="N", help="same seed, prompt and operating point: same text")
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    sampling.add_argument(
        "--ignore-eos", action="store_true", default=None, help="go on after the model's end-of-sequence token"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Generate and print. Raises ValueError or RequestError."""
    from stepwell.serving.offline import Engine

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    options = {name: getattr(args, name) for name in _OPTIONS}
    with Engine.open(args.model) as engine:
        if args.json:
            completion = engine.generate(prompt, **options)
            print_json({"model": args.model, "prompt": prompt, **dataclasses.asdict(completion)})
        else:
            report = _print(engine.stream(prompt, **options))
            say(summary(report, asked=any(getattr(args, name) is not None for name in _LATENCIES)))


def summary(report: Report, asked: bool) -> str:
    """What was served, in one line; ``asked``: a latency was."""
    parts = [f"served at {report.operating_point}, quality {report.quality:.3f}"]
    parts.append(f"{report.generated_tokens} tokens ({report.finish_reason}) in {report.total_ms:.0f} ms")
    if report.ttft_ms is not None:
        parts.append(f"the first after {report.ttft_ms:.0f} ms")
    if report.tpot_ms is not None:
        parts.append(f"then {report.tpot_ms:.1f} ms each")
    if asked:
        parts.append("in time" if report.slo_met else "LATE")
    return "; ".join(parts)


def _print(chunks: Iterator[Chunk]) -> Report:
    """Print the text as it comes; returns the report, which the last chunk has."""
    report = None
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
        report = chunk.report
    print(flush=True)
    assert report is not None, "a stream that ends without error ends with a report"
    return report
