"""What optimiser and checkpoints ask of a recipe, whatever is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Rates(Protocol):
    """What decides an update beside the gradients."""

    @property
    def learning_rate(self) -> float:
        """Highest rate of Muon, for the layers' matrices."""

    @property
    def embedding_rate(self) -> float:
        """Highest rate of AdamW, for everything else."""

    @property
    def num_steps(self) -> int: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def decay_share(self) -> float:
        """Share of the steps, at the end, over which the rate falls linearly to zero."""

    @property
    def weight_decay(self) -> float: ...

    @property
    def max_grad_norm(self) -> float: ...


class Recipe(Protocol):
    """What identifies a run."""

    @property
    def output(self) -> Path:
        """Folder the run writes."""

    def to_json(self) -> dict[str, Any]:
        """All that decides what is learnt. Two runs with the same one learn the same weights."""
