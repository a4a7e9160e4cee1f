"""Memory that the steps of one decoder use over and over: fresh memory costs a page fault every 4 KiB."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Buffers by name. What one holds is valid until the same name is taken again; for one thread."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of that shape."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size or buffer.dtype != dtype:
            # Room to grow, so that contexts that lengthen by a page do not allocate anew each time.
            buffer = self._buffers[name] = torch.empty(size + size // 4, dtype=dtype)
        return buffer[:size].view(*shape)
