"""The tokens of one image: some that stand for the whole, then patches row by row."""

from __future__ import annotations

from typing import NamedTuple


class Grid(NamedTuple):
    """``height`` x ``width`` patches behind ``num_prefix`` tokens (class token, distillation token)."""

    height: int
    width: int
    num_prefix: int

    @property
    def num_patches(self) -> int:
        return self.height * self.width

    @property
    def num_tokens(self) -> int:
        return self.num_prefix + self.num_patches
