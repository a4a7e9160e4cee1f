"""What a training run says after every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """State of a run after an optimiser step."""

    step: int
    """Steps done."""
    num_steps: int
    losses: Mapping[tuple[int, int], float]
    """Nats per token of the sub-networks this step trained, by (depth, FFN width)."""
    tokens_per_s: float
    step_s: float
    """Mean duration of a step of this run in seconds."""

    @property
    def eta_s(self) -> float:
        """Seconds until the last step at the mean speed so far."""
        return (self.num_steps - self.step) * self.step_s

    def __str__(self) -> str:
        levels = " ".join(f"d{depth}w{width}={loss:.3f}" for (depth, width), loss in sorted(self.losses.items()))
        speed = f"{self.tokens_per_s:.0f} tokens/s, {self.eta_s / 60:.1f} min left"
        return f"step {self.step}/{self.num_steps}  {levels}  {speed}"
