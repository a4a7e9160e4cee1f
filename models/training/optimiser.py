"""Muon for the layers' matrices, AdamW for the embedding and norms; a rate schedule; state as plain named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stepwell.models.training.muon import Float32Muon
from stepwell.models.training.recipe import Rates


def rate_factor(config: Rates, step: int) -> float:
    """Learning rate at ``step`` as a share of the highest: warm-up, stable, linear decay (WSD, arXiv 2404.06395).

    Before the decay it does not depend on the number of steps, so that a run may be prolonged from a checkpoint.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    left = (config.num_steps - step) / (config.num_steps * config.decay_share)
    return max(0.0, min(1.0, left))


class Optimiser:
    """Updates all parameters of a transformer.

    The layers' matrices take Muon's orthogonalised momentum (Jordan et al. 2024; scaled to AdamW's step size,
    arXiv 2502.16982); on a small budget of tokens it learns considerably faster than AdamW alone. The embedding and
    the norms take AdamW (Loshchilov & Hutter 2019).
    """

    def __init__(self, config: Rates, model: nn.Module, float32: bool = False) -> None:
        """``float32``: orthogonalise in float32 instead of bfloat16."""
        self._config = config
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        matrices = [parameter for parameter in self._names if self._is_matrix(parameter)]
        others = [parameter for parameter in self._names if not self._is_matrix(parameter)]
        self._muon = _muon(config, matrices, float32)
        self._adamw = torch.optim.AdamW(others, lr=config.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def update(self, step: int) -> None:
        """One update with the gradients in place, which are cleared."""
        factor = rate_factor(self._config, step)
        nn.utils.clip_grad_norm_(self._names, self._config.max_grad_norm)
        for optimiser, rate in ((self._muon, self._config.learning_rate), (self._adamw, self._config.embedding_rate)):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state as ``KIND.PARAMETER`` -> tensor."""
        return {
            f"{kind}.{name}": value
            for parameter, name in self._names.items()
            for kind, value in self._of(parameter).state[parameter].items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parameter = parameters[name]
            self._of(parameter).state[parameter][kind] = value.clone()

    def _of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        """Which of the two updates this parameter."""
        return self._muon if self._is_matrix(parameter) else self._adamw

    def _is_matrix(self, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 2 and ".layers." in self._names[parameter]


def _muon(config: Rates, matrices: list[nn.Parameter], float32: bool) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if float32:
        return Float32Muon(matrices, rate, decay)
    return torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
