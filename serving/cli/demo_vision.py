"""The demonstration's second part: images at token budgets of their own, all at once, and the route of one of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stepwell.models.loader import read_files
from stepwell.serving.app import Server
from stepwell.serving.background import BackgroundServer
from stepwell.serving.cli.demo_run import StepWatch
from stepwell.serving.cli.output import CommandError, say, table
from stepwell.serving.client import Client
from stepwell.serving.client_types import ModelDescription, Report, RequestFailedError
from stepwell.serving.config import ModelConfig, ServerConfig
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.engine_process.host import open_in_process
from stepwell.serving.hosted import HostedModel, OpenModel

PICTURE_FILE = "routes.png"
PATIENCE_S = 120.0
"""For every answer; then something is broken."""


@dataclass(frozen=True)
class Example:
    """An image that comes with a model, in ``examples/NUMBER_LABEL.png``; spaces of the label are hyphens there."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.stem.partition("_")[2].replace("-", " ")


@dataclass(frozen=True)
class VisionAnswer:
    """What one request got."""

    example: Example
    asked: Mapping[str, Any]
    """Options of ``Client.predict``."""
    predicted: str
    """The most likely class; empty if it was not served."""
    report: Report | None
    error: RequestFailedError | None

    @property
    def right(self) -> bool:
        return self.predicted == self.example.label


@dataclass(frozen=True)
class VisionOutcome:
    """The whole run."""

    model: ModelDescription
    answers: Sequence[VisionAnswer]
    most_points_in_step: int
    """Different operating points that one step computed together."""
    most_images_in_step: int


def run_vision(model: str, num_requests: int, open_model: OpenModel | None = None) -> VisionOutcome:
    """Serve ``model`` and send it images with different needs, all at once. Raises ValueError if it cannot be opened,
    CommandError if it has no examples."""
    config = ServerConfig(threads=1, models=(ModelConfig(model),), grpc_port=0, http_port=0)
    examples = examples_of(model)
    watches: list[StepWatch] = []
    open_model = open_model or partial(open_in_process, threads=config.threads, nice=config.engine_nice)

    def open_watched(config: ModelConfig, observer: EngineObserver) -> HostedModel:
        watches.append(StepWatch(observer))
        return open_model(config, watches[-1])

    say(f"loading {model} ...")
    with BackgroundServer(Server(config, open_watched)) as running, Client(running.address) as client:
        name = config.models[0].display_name
        described = client.describe(name)
        client.predict(name, images=[examples[0].path.read_bytes()])  # the first request finds nothing warm
        (watch,) = watches
        watch.steps.clear()
        wishes = mixed_wishes(described, num_requests)
        say(f"gRPC on {running.address}; sending {len(wishes)} images at once ...")
        answers = _send_all(client, described, examples, wishes)
    return VisionOutcome(
        described,
        answers,
        max(len(step.points) for step in watch.steps),
        max(step.num_sequences for step in watch.steps),
    )


def examples_of(model: str) -> list[Example]:
    """The images that come with a model. Raises CommandError if there are none."""
    files = read_files(model)
    found = [Example(path) for path in sorted((files.path / "examples").glob("*.png"))]
    if not found:
        raise CommandError(f"model: {files.name} has no folder 'examples' of PNG files; use 'stepwell explain' instead")
    return found


def mixed_wishes(model: ModelDescription, count: int) -> list[dict[str, Any]]:
    """Deadlines, budgets, floors and pinned points in turn."""
    ladders = [ladder for ladder in model.ladders if len(ladder.points) > 1]
    pins = [ladder.points[k].name for k in (0, 2, 1) for ladder in ladders if k < len(ladder.points)]
    kinds: list[dict[str, Any]] = [{}, {"slo_ms": 1000.0}, {"slo_ms": 150.0}, {"token_budget": 0.4}]
    kinds += [{"min_quality": 0.95, "slo_ms": 400.0}, {"token_budget": 0.75}]
    return [
        {"operating_point": pins[i // 2 % len(pins)]} if i % 2 and pins else dict(kinds[i // 2 % len(kinds)])
        for i in range(count)
    ]


def _send_all(
    client: Client, model: ModelDescription, examples: Sequence[Example], wishes: Sequence[Mapping[str, Any]]
) -> list[VisionAnswer]:
    barrier = threading.Barrier(len(wishes))

    def ask(index: int) -> VisionAnswer:
        example, wish = examples[index % len(examples)], wishes[index]
        data = example.path.read_bytes()
        barrier.wait()
        try:
            answer = client.predict(model.name, images=[data], timeout_s=PATIENCE_S, **wish)
        except RequestFailedError as error:
            return VisionAnswer(example, wish, "", None, error)
        best = int(answer.outputs["logits"][0].argmax())
        return VisionAnswer(example, wish, model.labels[best] if model.labels else str(best), answer.report, None)

    with ThreadPoolExecutor(len(wishes), thread_name_prefix="client") as threads:
        return list(threads.map(ask, range(len(wishes))))


def vision_text(outcome: VisionOutcome) -> str:
    """A line a request, and a summary."""
    rows = []
    for number, answer in enumerate(outcome.answers):
        asked = ", ".join(f"{key} {value}" for key, value in answer.asked.items()) or "-"
        row = [str(number), answer.example.label, asked]
        if answer.report is None:
            assert answer.error is not None
            rows.append([*row, "-", "-", "-", "-", answer.error.status, "-"])
            continue
        report = answer.report
        kept = f"{report.tokens_kept}/{report.prompt_tokens}"
        met = "-" if report.slo_ms is None else "yes" if report.slo_met else "NO"
        seen = answer.predicted if answer.right else f"{answer.predicted} (wrong)"
        rows.append([*row, report.operating_point, f"{report.quality:.3f}", kept, f"{report.total_ms:.0f}", seen, met])
    headers = ["#", "image", "asked for", "served at", "quality", "tokens", "all, ms", "seen as", "SLO met"]
    left = ["image", "asked for", "served at", "seen as", "SLO met"]
    found = vision_totals(outcome)
    return (
        f"{table(headers, rows, left)}\n\n"
        f"{found['requests']} images at once over gRPC: {found['served']} served, {found['right']} of them recognised; "
        f"{found['points_served']} different operating points, up to {found['most_points_in_step']} in one step of "
        f"{found['most_images_in_step']} images; {found['tokens_kept_share']:.0%} of the tokens were computed."
    )


def vision_totals(outcome: VisionOutcome) -> dict[str, Any]:
    """The numbers of the summary."""
    served = [answer for answer in outcome.answers if answer.report is not None]
    reports = [answer.report for answer in served if answer.report is not None]
    tokens = sum(report.prompt_tokens for report in reports)
    return {
        "requests": len(outcome.answers),
        "served": len(served),
        "right": sum(answer.right for answer in served),
        "points_served": len({report.operating_point for report in reports}),
        "most_points_in_step": outcome.most_points_in_step,
        "most_images_in_step": outcome.most_images_in_step,
        "tokens_kept_share": sum(report.tokens_kept or 0 for report in reports) / max(tokens, 1),
    }


def vision_document(outcome: VisionOutcome) -> dict[str, Any]:
    """The part of the document of ``--json``."""
    return {
        "model": outcome.model.name,
        "summary": vision_totals(outcome),
        "requests": [
            {
                "request": number,
                "image": answer.example.path.name,
                "asked": dict(answer.asked),
                "predicted": answer.predicted,
                "report": None if answer.report is None else asdict(answer.report),
                "error": None if answer.error is None else str(answer.error),
            }
            for number, answer in enumerate(outcome.answers)
        ],
    }
