"""Linear layers over slices of their units, with weights packed once for oneDNN where torch offers it.

A packed weight multiplies 1 to 32 rows 1.3 to 2 times faster than the plain one on an AVX-512 CPU
(``benchmarks/results/linear.md``). A slice that is run alone must be packed alone, so slices are packed on first use
and kept within a budget; beyond it the plain weight serves, with the same result to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_log = logging.getLogger(__name__)

Part = tuple[nn.Linear | nn.Embedding, int, int]
"""A linear layer (or an embedding used as the head) and the range of its units that runs."""


def can_pack(dtype: torch.dtype) -> bool:
    """True if this build of torch has oneDNN's prepacked linear for CPU tensors of ``dtype``."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class SliceLinear:
    """Runs unit slices of linear layers; the memory of packed copies is bounded by ``budget_bytes``.

    A budget of 0, as while weights change in training, packs nothing: every call reads the plain weights.
    """

    def __init__(self, budget_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        self.packed_bytes = 0
        self._has_spoken = False
        self._packs: dict[tuple[object, ...], tuple[Tensor | None, Tensor | None, list[int]]] = {}

    def rows(self, x_RD: Tensor, parts: Sequence[Part]) -> Sequence[Tensor]:
        """Output units ``start:stop`` of each part: a list of [R, stop - start], from one product if packed."""
        weight, bias, sizes = self._rows_pack(parts) if self.budget_bytes else (None, None, [])
        if weight is None:
            return [F.linear(x_RD, m.weight[a:b], _bias(m, a, b)) for m, a, b in parts]
        parts_of: tuple[Tensor, ...] = _packed(x_RD, weight, bias).split(sizes, dim=-1)
        return parts_of

    def columns(self, h_RU: Tensor, part: Part) -> Tensor:
        """Product of the layer's input units ``start:stop`` with ``h`` [R, stop - start]: [R, out], without bias."""
        module, start, stop = part
        weight = self._columns_pack(part) if self.budget_bytes else None
        if weight is None:
            return F.linear(h_RU, module.weight[:, start:stop])
        return _packed(h_RU, weight, None)

    def _rows_pack(self, parts: Sequence[Part]) -> tuple[Tensor | None, Tensor | None, list[int]]:
        key = ("rows", *((id(module), start, stop) for module, start, stop in parts))
        pack = self._packs.get(key)
        if pack is None:
            weight = self._pack(torch.cat([module.weight[start:stop] for module, start, stop in parts]))
            biases = [bias for part in parts if (bias := _bias(*part)) is not None]
            pack = (weight, torch.cat(biases) if biases else None, [stop - start for _, start, stop in parts])
            self._packs[key] = pack
        return pack

    def _columns_pack(self, part: Part) -> Tensor | None:
        module, start, stop = part
        key = ("columns", id(module), start, stop)
        if key not in self._packs:
            self._packs[key] = (self._pack(module.weight[:, start:stop].contiguous()), None, [])
        return self._packs[key][0]

    def _pack(self, weight: Tensor) -> Tensor | None:
        size = weight.numel() * weight.element_size()
        if not can_pack(weight.dtype):
            self._say_once("this torch packs no %s weights: products run from the plain ones", weight.dtype)
            return None
        if self.packed_bytes + size > self.budget_bytes:
            self._say_once("packed copies fill their %d bytes: further slices run unpacked, slower", self.budget_bytes)
            return None
        self.packed_bytes += size
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)  # type: ignore[no-any-return]

    def _say_once(self, message: str, value: object) -> None:
        if not self._has_spoken:
            self._has_spoken = True
            _log.warning(message, value)


def _bias(module: nn.Linear | nn.Embedding, start: int, stop: int) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return None if bias is None else bias[start:stop]


def _packed(x_RD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_RD, weight, bias, "none", [], "")  # type: ignore[no-any-return]
