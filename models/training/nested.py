"""Sorted (nested) training of a decoder: the function behind ``stepwell train nested``.

1. Text: read the corpus, split it by file, train a tokenizer on the training side, join documents to one stream.
2. Steps: sample sub-networks, accumulate their gradients, update; checkpoint now and then; resume where a run stopped.
3. Model: store the weights in bfloat16, measure bits per byte of every depth and width on the held-out files, write a
   model directory with its ladders.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.models.training import checkpoint
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.optimiser import Optimiser
from stepwell.models.training.progress import Progress
from stepwell.models.training.publish import write_model
from stepwell.models.training.sampling import SampledNetworks, rectangle, sample_networks
from stepwell.models.training.text import TrainingText, prepare_text
from stepwell.models.training.windows import Windows

MODEL_FOLDER = "model"


def train(config: NestedConfig, progress: Callable[[Progress], None] = lambda _: None) -> Path:
    """Train, measure and write a nested decoder; returns its directory, ``output/model``.

    Resumes from ``output/checkpoint`` if there is one, and then ends with the weights an unbroken run would have.
    ``progress`` is called after every optimiser step. Raises ValueError for a recipe, corpus or checkpoint that do
    not fit together.
    """
    text = prepare_text(config)
    decoder = run_steps(config, text, progress)
    return write_model(config, decoder, text, config.output / MODEL_FOLDER)


def new_decoder(config: NestedConfig) -> Decoder:
    """An untrained decoder; the seed decides its weights. Projections back to the residual stream start smaller."""
    decoder = Decoder(DecoderConfig.from_hf(config.hf_config())).float()
    generator = torch.Generator().manual_seed(config.seed)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim < 2:
            nn.init.ones_(parameter)
            continue
        to_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 0.02 / (2 * config.num_layers) ** 0.5 if to_residual else 0.02
        nn.init.normal_(parameter, std=std, generator=generator)
    return decoder


def run_steps(config: NestedConfig, text: TrainingText, progress: Callable[[Progress], None]) -> Decoder:
    """All optimiser steps that are still to do. Raises ValueError as :func:`train`."""
    decoder = new_decoder(config)
    optimiser = Optimiser(config, decoder)
    first = checkpoint.resume(config, decoder, optimiser, text.digest)
    windows, started = Windows(text.train, config.seed), time.monotonic()
    for step in range(first, config.num_steps):
        losses = _accumulate(config, decoder, windows, step)
        optimiser.update(step)
        done = step + 1
        if done % config.checkpoint_every == 0 or done == config.num_steps:
            checkpoint.save(config, decoder, optimiser, checkpoint.TrainingState(done, text.digest))
        step_s = (time.monotonic() - started) / (done - first)
        progress(Progress(done, config.num_steps, losses, config.tokens_per_step / step_s, step_s))
    return decoder


def _accumulate(config: NestedConfig, decoder: Decoder, windows: Windows, step: int) -> dict[tuple[int, int], float]:
    """Gradients of all sub-networks of one step; returns the loss per (depth, width) in nats per token."""
    length = config.context_at(step)
    per_micro_batch = config.tokens_per_step // config.micro_batches // length
    losses: dict[tuple[int, int], float] = {}
    for index, networks in enumerate(sample_networks(config, step)):
        first = (step * config.micro_batches + index) * per_micro_batch
        inputs, targets = windows.batch(range(first, first + per_micro_batch), length)
        found = network_losses(config, decoder, networks, inputs, targets)
        torch.autograd.backward(_weighted(config, list(found.values())) / config.micro_batches)
        losses |= {network: float(loss.detach()) for network, loss in found.items()}
    return losses


def network_losses(
    config: NestedConfig, decoder: Decoder, networks: SampledNetworks, inputs_BT: Tensor, targets_BT: Tensor
) -> dict[tuple[int, int], Tensor]:
    """Cross-entropy (nats per token) per (depth, width), ascending depth, the full depth last; one forward."""
    subnet = rectangle(decoder.config.architecture, config.num_layers, networks.width)
    depths = (*networks.exit_depths, config.num_layers)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        states = decoder.forward_dense(inputs_BT, subnet, networks.exit_depths)
        logits = [decoder.logits(state) for state in states]
    targets = targets_BT.reshape(-1)
    return {
        (depth, networks.width): F.cross_entropy(found.float().flatten(0, 1), targets)
        for depth, found in zip(depths, logits, strict=True)
    }


def _weighted(config: NestedConfig, losses: list[Tensor]) -> Tensor:
    """The loss of a micro-batch: the full depth, and the mean of the exits if there are any."""
    *exits, full = losses
    if not exits:
        return full
    return (1.0 - config.exit_weight) * full + config.exit_weight * torch.stack(exits).mean()
