"""What ``stepwell bench`` finds out of a server before it sends anything: what the model takes, and how to put it."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stepwell.serving.cli.output import CommandError, say

if TYPE_CHECKING:
    from stepwell.serving.client_types import ModelDescription
    from stepwell.serving.config import SLOClass
    from stepwell.serving.grpc.load_wire import ModelTensors
    from stepwell.serving.replay.load import Target
    from stepwell.serving.replay.workload import Workload

ANSWER_S = 20.0
"""For a server to say what it serves."""
_WARM_UP = 3
_FULL_QUALITY = {"operating_point": "max"}
_GENERATES, _ENCODES = frozenset({"text", "output_ids"}), frozenset({"embedding", "logits", "last_hidden_state"})
_IMAGE_OUTPUTS, _TEXT_OUTPUTS = ("logits",), ("embedding", "logits")
"""The small ones, the first that there is; else all."""


@dataclass(frozen=True)
class Learned:
    """A server's model as a target, and the lengths it takes."""

    target: Target
    context_length: int | None
    """None = not known."""
    ours: bool
    """A Stepwell server."""

    def fitted(self, workload: Workload) -> Workload:
        """``workload`` as this model can be sent it."""
        from stepwell.serving.replay.items import ItemTokens, as_items

        if self.target.pictures is not None:
            return workload.with_lengths(lambda _: (1, 1), "an image each")
        if self.context_length is None:
            return workload
        if self.target.whole:
            return as_items(workload, ItemTokens(1, self.context_length))
        return workload.fitted(self.context_length)


def learn(args: argparse.Namespace, address: str, classes: Mapping[str, SLOClass]) -> Learned:
    """Ask the server. Raises NotServedError, RequestFailedError, ValueError."""
    from stepwell.serving.replay.load import Target, probe

    name = Path(args.model).name if not args.address else args.model
    found = probe(address, name, ANSWER_S)
    described = _describe(address, name)
    if described is None:
        vocab_size, context_length = args.vocab or 256, args.context
        say(f"not a Stepwell server: qualities count as {args.quality:g}, token ids lie below {vocab_size}")
    else:
        vocab_size, context_length = args.vocab or described.vocab_size, args.context or described.context_length
    target = Target(
        address=address,
        model=name,
        slo_classes=classes,
        unary=args.unary,
        slo_as=args.slo_as,
        text="input_ids" not in found.inputs,
        vocab_size=vocab_size,
        quality=args.quality,
        timeout_s=args.timeout,
        num_connections=args.connections,
    )
    if _answers_whole(found, described):
        target = _whole(target, found, described, args)
    elif args.images is not None:
        raise ValueError(f"images: {name} generates text, got {args.images}; leave --images out")
    return Learned(target, context_length, described is not None)


def _describe(address: str, name: str) -> ModelDescription | None:
    """None if the server is not ours."""
    from stepwell.serving.client import Client, RequestFailedError

    try:
        with Client(address) as client:
            return client.describe(name)
    except RequestFailedError as error:
        if error.status != "UNIMPLEMENTED":
            raise
        return None


def _answers_whole(found: ModelTensors, described: ModelDescription | None) -> bool:
    from stepwell.serving.replay.pictures import takes_images

    if described is not None:
        return described.task != "generate"
    outputs = set(found.outputs)
    return takes_images(found.inputs) or (bool(outputs & _ENCODES) and not outputs & _GENERATES)


def _whole(target: Target, found: ModelTensors, described: ModelDescription | None, args: argparse.Namespace) -> Target:
    from stepwell.serving.replay.pictures import from_folder, made_up, takes_images

    pictures = None
    if args.images is not None:
        pictures = from_folder(found.inputs, args.images, args.seed)
    elif takes_images(found.inputs):
        told = described.image_size if described else None
        pictures = made_up(found.inputs, args.image_size or told, args.seed)
    preferred = _IMAGE_OUTPUTS if pictures else _TEXT_OUTPUTS
    outputs = tuple(name for name in preferred if name in found.outputs)[:1]
    return replace(target, whole=True, unary=True, pictures=pictures, outputs=outputs)


def warm_up(learned: Learned, workload: Workload) -> float:
    """The first requests of a process find nothing warm: send some, with prompts that none of the workload shares.

    A model that answers as a whole gets typical items, at full quality if it is ours. Returns the seconds that the
    server predicts of one request; nan if it does not. Raises CommandError if all fail.
    """
    from stepwell.serving.replay.items import typical_tokens
    from stepwell.serving.replay.load import send_load
    from stepwell.serving.replay.workload import Arrival, Workload

    target = learned.target
    name = next(iter(target.slo_classes))
    length = (typical_tokens(workload), 1) if target.whole else (8, 4)
    first = Workload.of("warm-up", [Arrival(0.2 * i, *length, name, prefix=(2**40 + i,)) for i in range(_WARM_UP)])
    records = send_load(
        first, replace(target, slo_as="none", options=_FULL_QUALITY if target.whole and learned.ours else {})
    ).records
    if all(record.result.outcome == "failed" for record in records):
        raise CommandError(
            f"server: fails every request ({records[-1].status}: {records[-1].message}); nothing was sent"
        )
    predicted_ms = [record.predicted_ms for record in records if record.predicted_ms is not None]
    return statistics.median(predicted_ms) / 1e3 if predicted_ms else math.nan


def told_in_numbers(target: Target, classes: Mapping[str, SLOClass]) -> Target:
    """With classes that the server does not know: it is told what they ask for."""
    return replace(target, slo_classes=classes, slo_as="numbers" if target.slo_as == "class" else target.slo_as)
