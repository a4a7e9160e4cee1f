"""What operating points cost, in a few numbers that people can compare."""

from __future__ import annotations

from dataclasses import dataclass

from stepwell.models.config import DecoderConfig
from stepwell.models.loader import ModelFiles
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Slice
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.hosted import item_shape

CONTEXT = 256
"""Keys that a decoding sequence reads."""
PROMPT_TOKENS = 256
TOGETHER = 16


@dataclass(frozen=True)
class Column:
    """One such number: the predicted milliseconds of a step in which everybody runs one operating point."""

    key: str
    header: str
    num_tokens: int
    """That a sequence runs."""
    start: int = 0
    """Tokens that it has run before."""
    num_sequences: int = 1

    def milliseconds(self, model: StepCostModel, point: OperatingPoint) -> float:
        """As measured, without online correction."""
        return 1e3 * model.raw_s([made_up_slice(point, self.num_tokens, self.start)] * self.num_sequences)


@dataclass(frozen=True)
class Columns:
    """What is told of every operating point of a model."""

    columns: tuple[Column, ...]
    about: str
    """What the columns are, in a line."""
    compared: str
    """Key of the one to compare points by, ..."""
    compared_label: str
    """... and what it is."""

    @property
    def names(self) -> dict[str, str]:
        """Key -> header."""
        return {column.key: column.header for column in self.columns}

    def costs(self, model: StepCostModel, point: OperatingPoint) -> dict[str, float]:
        """All of them by key."""
        return {column.key: column.milliseconds(model, point) for column in self.columns}


GENERATION = Columns(
    (
        Column("decode_ms", "decode 1, ms", 1, CONTEXT - 1),
        Column("decode_together_ms", f"decode {TOGETHER}, ms", 1, CONTEXT - 1, TOGETHER),
        Column("prompt_ms", f"prompt {PROMPT_TOKENS}, ms", PROMPT_TOKENS),
    ),
    f"milliseconds of steps: 1 or {TOGETHER} sequences decode over {CONTEXT} tokens; a prompt of {PROMPT_TOKENS}",
    "decode_together_ms",
    f"{TOGETHER} sequences decode over {CONTEXT} tokens",
)


def columns_of(files: ModelFiles) -> Columns:
    """What is told of a model's operating points."""
    config = files.config
    if isinstance(config, DecoderConfig):
        return GENERATION
    shape = item_shape(config)
    num_tokens = config.num_tokens(shape)
    what = f"texts of {num_tokens} tokens" if config.vocab_size else f"images of {shape[1]} x {shape[2]}"
    return Columns(
        (
            Column("item_ms", "1 item, ms", num_tokens),
            Column("items_together_ms", f"{TOGETHER} items, ms", num_tokens, 0, TOGETHER),
        ),
        f"milliseconds of steps: 1 or {TOGETHER} {what}",
        "items_together_ms",
        f"{TOGETHER} {what}",
    )


def made_up_slice(point: OperatingPoint, num_tokens: int, start: int) -> Slice:
    """The newest token, or the last chunk of the prompt, of a sequence with ``start`` tokens in the cache."""
    request = Request("", 0.0, SLO(), (point,), start + num_tokens, 1)
    request.computed_tokens, request.generated_tokens = start, int(num_tokens == 1)
    return Slice(request, num_tokens, point)
