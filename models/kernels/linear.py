"""Linear layers over slices of their units, with weights packed once for oneDNN where torch offers it.

A packed weight multiplies 1 to 32 rows 1.3 to 2 times faster than the plain one on an AVX-512 CPU
(``benchmarks/results/linear.md``). A slice that is run alone must be packed alone, so slices are packed on first use
and kept within a budget; beyond it the plain weight serves, with the same result to rounding.

oneDNN generates code for every number of rows it has not seen (0.4 ms a product, 5 to 7 ms a step of a small model, 25
to 35 ms where levels mix) and remembers a thousand products: so rows are padded to one of a few dozen counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.models.kernels.activations import ACTIVATIONS

_log = logging.getLogger(__name__)


class HasWeight(Protocol):
    """A linear layer, or an embedding used as the head; it may have a ``bias`` too."""

    @property
    def weight(self) -> Tensor: ...


Part = tuple[HasWeight, int, int]
"""A layer and the range of its units that runs."""


_ROW_STEPS = ((16, 1), (64, 4), (512, 16), (1024, 32))
"""Up to so many rows, counts are multiples of so many; beyond, of 64."""


def padded_rows(num_rows: int) -> int:
    """The count of rows that so many are multiplied as: at least as many, at most a quarter more."""
    step = next((step for limit, step in _ROW_STEPS if num_rows <= limit), 64)
    return -(-num_rows // step) * step


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
    ``pads_rows``: whether products are padded to a few dozen counts of rows. Without, each new count costs generating
    code, which is less than a few rows of a large model cost.
    """

    def __init__(self, budget_bytes: int = 0, pads_rows: bool = True) -> None:
        self.budget_bytes, self.pads_rows = budget_bytes, pads_rows
        self.packed_bytes = 0
        self._has_spoken = False
        self._packs: dict[tuple[object, ...], tuple[Tensor | None, Tensor | None, list[int]]] = {}

    def rows(self, x_RD: Tensor, parts: Sequence[Part], activation: str | None = None) -> Sequence[Tensor]:
        """Output units ``start:stop`` of each part: a list of [R, stop - start], from one product if packed.

        ``activation`` is a name of :data:`~stepwell.models.kernels.activations.ACTIVATIONS`, applied to every unit.
        """
        weight, bias, sizes = self._rows_pack(parts) if self.budget_bytes else (None, None, [])
        if weight is None:
            outs = [F.linear(x_RD, m.weight[a:b], _bias(m, a, b)) for m, a, b in parts]
            return [ACTIVATIONS[activation].apply(out) for out in outs] if activation else outs
        parts_of: tuple[Tensor, ...] = self._packed(x_RD, weight, bias, activation).split(sizes, dim=-1)
        return parts_of

    def columns(self, h_RU: Tensor, part: Part, bias: Tensor | None = None) -> Tensor:
        """Product of the layer's input units ``start:stop`` with ``h`` [R, stop - start]: [R, out]. The layer's own
        bias is left out; ``bias`` [out], if given, is added."""
        module, start, stop = part
        weight = self._columns_pack(part) if self.budget_bytes else None
        if weight is None:
            return F.linear(h_RU, module.weight[:, start:stop], bias)
        return self._packed(h_RU, weight, bias)

    @torch.inference_mode()
    def warm_up(self, max_rows: int, budget_s: float = 1.0) -> None:
        """Have the code for every packed shape and every count of rows up to ``max_rows`` generated, few rows first,
        for at most about ``budget_s`` seconds: a step should not wait for it."""
        shapes: dict[tuple[int, ...], Tensor] = {}
        for weight, _, _ in self._packs.values():
            if weight is not None:
                shapes.setdefault(tuple(weight.shape), weight)
        until_s = time.monotonic() + budget_s
        for num_rows in sorted({padded_rows(n) for n in range(1, max_rows + 1)}):
            for (_, size), weight in shapes.items():
                self._packed(torch.zeros(num_rows, size, dtype=weight.dtype), weight, None)
            if time.monotonic() > until_s:
                return

    def _packed(self, x_RD: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
        num_rows = len(x_RD)
        if self.pads_rows and (padded := padded_rows(num_rows)) != num_rows:
            x_RD = _lengthened(x_RD, padded)
        name, algorithm = ACTIVATIONS[activation].fused if activation else ("none", "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_RD, weight, bias, name, [], algorithm)
        return out[:num_rows]

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


def _lengthened(x_RD: Tensor, num_rows: int) -> Tensor:
    """``num_rows`` rows of which the first are ``x_RD``. What the others hold does not matter, as the products of rows
    are dropped; where the storage goes on behind the rows (they are a product or a part of a batch), nothing is copied.
    """
    size = x_RD.shape[1]
    end_bytes = (x_RD.storage_offset() + num_rows * size) * x_RD.element_size()
    if x_RD.is_contiguous() and end_bytes <= x_RD.untyped_storage().nbytes():
        return x_RD.as_strided((num_rows, size), (size, 1))
    wide = x_RD.new_empty(num_rows, size)
    wide[: len(x_RD)] = x_RD
    wide[len(x_RD) :] = 0.0
    return wide


def _bias(module: HasWeight, start: int, stop: int) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return None if bias is None else bias[start:stop]
