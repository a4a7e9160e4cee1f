"""Muon in float32, matrices of one shape at a time: for processors on which bfloat16 products are emulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_NUM_ITERATIONS = 5


class Float32Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024), scaled to AdamW's step size (arXiv 2502.16982).

    The same update as ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, which rounds to bfloat16 on the
    way: without instructions for it, that takes ten times longer than this.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for parameters in shapes.values():
                self._update(parameters, group["lr"], group["weight_decay"])

    def _update(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        moments = []
        for parameter in parameters:
            assert parameter.grad is not None
            moment = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            moments.append(parameter.grad.lerp(moment.lerp_(parameter.grad, 1.0 - _MOMENTUM), _MOMENTUM))
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, _orthogonal(torch.stack(moments)), strict=True):
            parameter.mul_(1.0 - lr * weight_decay).add_(update, alpha=-lr * scale)


def _orthogonal(x_NRC: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: a quintic Newton-Schulz iteration."""
    wide = x_NRC.mT if x_NRC.shape[-2] > x_NRC.shape[-1] else x_NRC
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    found: Tensor = wide.mT if x_NRC.shape[-2] > x_NRC.shape[-1] else wide
    return found
