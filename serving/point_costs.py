"""What operating points cost, in a few numbers that people can compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Slice
from stepwell.schedulers.request import SLO, OperatingPoint, Request

CONTEXT = 256
"""Keys that a decoding sequence reads."""
PROMPT_TOKENS = 256
TOGETHER = 16
HEADERS = ("decode 1, ms", f"decode {TOGETHER}, ms", f"prompt {PROMPT_TOKENS}, ms")
"""Of the columns that :func:`cells` fills."""


@dataclass(frozen=True)
class PointCost:
    """Predicted milliseconds of steps in which everybody runs one operating point."""

    decode_ms: float
    """One sequence generates its next token."""
    decode_together_ms: float
    """So do TOGETHER sequences."""
    prompt_ms: float
    """A prompt of PROMPT_TOKENS tokens."""


def point_cost(model: StepCostModel, point: OperatingPoint) -> PointCost:
    """As measured, without online correction."""

    def milliseconds(num_tokens: int, start: int, sequences: int = 1) -> float:
        return 1e3 * model.raw_s([made_up_slice(point, num_tokens, start)] * sequences)

    return PointCost(
        milliseconds(1, CONTEXT - 1), milliseconds(1, CONTEXT - 1, TOGETHER), milliseconds(PROMPT_TOKENS, 0)
    )


def made_up_slice(point: OperatingPoint, num_tokens: int, start: int) -> Slice:
    """The newest token, or the last chunk of the prompt, of a sequence with ``start`` tokens in the cache."""
    request = Request("", 0.0, SLO(), (point,), start + num_tokens, 1)
    request.computed_tokens, request.generated_tokens = start, int(num_tokens == 1)
    return Slice(request, num_tokens, point)


def cells(cost: Mapping[str, float]) -> list[str]:
    """The fields of a PointCost for a table."""
    return [f"{cost[name]:.2f}" for name in ("decode_ms", "decode_together_ms", "prompt_ms")]
