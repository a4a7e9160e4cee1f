"""See it work: serve the shipped models, send requests with different needs all at once, show what each one got.

The servers are real ones, on loopback; every request comes over gRPC from a thread of its own. First texts are
generated, then images classified. Prints tables and summaries, and saves a plot and the route of an image through its
model. Two of the requests cannot be served, to show how that is told.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli.output import UsageError, add_json_option, excerpt, print_json, say, table

if TYPE_CHECKING:
    from stepwell.serving.cli.demo_run import Answer, Outcome

HELP = "serve the shipped models, send a mixed load, show what each request got"
PLOT_FILE = "demo.png"
_MIN_REQUESTS = 4
_NUM_TEXTS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell demo``."""
    parser.add_argument("--model", default="nested-lm", help="another model with a tokenizer (default %(default)s)")
    parser.add_argument("--vision", default="routed-vit", help="model for the images, or none (default %(default)s)")
    parser.add_argument("--requests", type=int, default=28, metavar="N", help="how many at once (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help=f"where {PLOT_FILE} goes (default %(default)s)"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Serve, send, print, plot. Raises ValueError if the model cannot be opened."""
    if args.requests < _MIN_REQUESTS:
        raise UsageError(f"--requests: must be >= {_MIN_REQUESTS}, got {args.requests}")
    args.out.mkdir(parents=True, exist_ok=True)
    from stepwell.serving.cli.demo_plot import save_plot
    from stepwell.serving.cli.demo_run import run_demo

    outcome = run_demo(args.model, args.requests)
    plot = args.out / PLOT_FILE
    save_plot(outcome, plot)
    if not args.json:
        print("\n\n".join([request_table(outcome), _failures(outcome), _texts(outcome), summary(outcome)]))
        say(f"plot: {plot}")
    seen = None if args.vision == "none" else _run_vision(args)
    if args.json:
        print_json(document(outcome) | {"plot": str(plot), "vision": seen})


def _run_vision(args: argparse.Namespace) -> dict[str, Any]:
    """The second part: its part of the document."""
    from stepwell.serving.cli.demo_vision import PICTURE_FILE, examples_of, run_vision, vision_document, vision_text
    from stepwell.serving.cli.explain import explain

    outcome = run_vision(args.vision, args.requests)
    picture = args.out / PICTURE_FILE
    explain(args.vision, examples_of(args.vision)[0].path, picture, budget=0.4)
    if not args.json:
        print(f"\n{vision_text(outcome)}")
        say(f"route of the first image at a budget of 0.4: {picture}")
    return vision_document(outcome) | {"picture": str(picture)}


def request_table(outcome: Outcome) -> str:
    """One line a request."""
    asked = ["#", "prompt", "deadline, ms", "asked for"]
    got = ["served at", "quality", "tokens", "first, ms", "all, ms", "SLO met"]
    rows = [_row(number, answer, outcome) for number, answer in enumerate(outcome.answers)]
    return table(asked + got, rows, left=[*asked[1:], "served at", "SLO met"])


def _row(number: int, answer: Answer, outcome: Outcome) -> list[str]:
    wish, report = answer.wish, answer.report
    asked = [str(number), excerpt(wish.prompt, 22), wish.deadline(outcome.classes), wish.size()]
    if report is None:
        return [*asked, "-", "-", "-", "-", f"{answer.client_ms:.0f}", answer.outcome]
    first = "-" if report.ttft_ms is None else f"{report.ttft_ms:.0f}"
    met = "-" if wish.due_ms(outcome.classes, 1) is None else "yes" if report.slo_met else "NO"
    got = [report.operating_point, f"{report.quality:.3f}", str(report.generated_tokens)]
    return [*asked, *got, first, f"{report.total_ms:.0f}", met]


def _failures(outcome: Outcome) -> str:
    lines = ["Not served:"]
    for number, answer in enumerate(outcome.answers):
        if answer.error is not None:
            lines.append(f"  #{number} {answer.outcome} after {answer.client_ms:.0f} ms: {answer.error}")
    return "\n".join(lines)


def _texts(outcome: Outcome) -> str:
    served = [(n, answer) for n, answer in enumerate(outcome.answers) if answer.report is not None]
    served.sort(key=lambda item: item[1].report.quality if item[1].report else 0.0)
    chosen = served[:: max(1, (len(served) - 1) // (_NUM_TEXTS - 1))][:_NUM_TEXTS]
    blocks = ["What some of them continued with (| marks where the prompt ends):"]
    for number, answer in chosen:
        assert answer.report is not None
        text = f"{answer.wish.prompt}|{answer.text}"
        body = "\n".join(f"    {line}".rstrip() for line in text.expandtabs(4).splitlines()[:8]).rstrip()
        blocks.append(f"  #{number} at {answer.report.operating_point}, quality {answer.report.quality:.3f}\n{body}")
    return "\n".join(blocks)


def summary(outcome: Outcome) -> str:
    """The run in a few lines."""
    found = totals(outcome)
    return (
        f"{found['requests']} requests at once over gRPC: {found['met'] + found['missed']} served, "
        f"{found['missed']} of them late; {found['expired']} expired, {found['refused']} refused.\n"
        f"{found['sub_networks_served']} different sub-networks of one model were served, up to "
        f"{found['most_sub_networks_in_step']} of them in one step; the largest packed batch held "
        f"{found['most_sequences_in_step']} sequences.\n"
        f"{found['mixed_steps']} of {found['steps']} steps mixed sub-networks. {found['generated_tokens']} tokens in "
        f"{found['seconds']:.2f} s: {found['tokens_per_s']:.0f} tokens/s."
    )


def totals(outcome: Outcome) -> dict[str, Any]:
    """The numbers of the summary."""
    reports = [answer.report for answer in outcome.answers if answer.report is not None]
    outcomes = Counter(answer.outcome for answer in outcome.answers)
    tokens = sum(report.generated_tokens for report in reports)
    return {
        "requests": len(outcome.answers),
        **{name: outcomes[name] for name in ("met", "missed", "expired", "refused")},
        "operating_points_served": len({report.operating_point for report in reports}),
        "sub_networks_served": outcome.num_served,
        "steps": len(outcome.steps),
        "mixed_steps": sum(outcome.count_sub_networks(step.points) > 1 for step in outcome.steps),
        "most_sub_networks_in_step": outcome.most_in_step,
        "most_sequences_in_step": max(step.num_sequences for step in outcome.steps),
        "generated_tokens": tokens,
        "seconds": outcome.seconds,
        "tokens_per_s": tokens / outcome.seconds,
    }


def document(outcome: Outcome) -> dict[str, Any]:
    """The document of ``--json``."""
    return {
        "model": outcome.model.name,
        "summary": totals(outcome),
        "requests": [_request_document(n, answer, outcome) for n, answer in enumerate(outcome.answers)],
    }


def _request_document(number: int, answer: Answer, outcome: Outcome) -> dict[str, Any]:
    wish, report, error = answer.wish, answer.report, answer.error
    num_tokens = report.generated_tokens if report else wish.max_tokens
    return {
        "request": number,
        "prompt": wish.prompt,
        "asked": wish.options(),
        "due_ms": wish.due_ms(outcome.classes, num_tokens),
        "outcome": answer.outcome,
        "text": answer.text,
        "client_ms": answer.client_ms,
        "report": None if report is None else vars(report),
        "error": None if error is None else {"status": error.status, "message": error.message},
    }
