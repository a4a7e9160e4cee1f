"""A trained decoder as a model directory: weights, tokenizer, ladders, and the measurements behind them."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stepwell.models.decoder import Decoder
from stepwell.models.ladder import LADDER_FILE
from stepwell.models.loader import save_checkpoint
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.evaluate import Grid, measure_grid
from stepwell.models.training.levels import ladder_document, layer_parameters
from stepwell.models.training.text import TOKENIZER_FILE, TrainingText

EVALUATION_FILE = "evaluation.json"
SLICE_CHARACTERS = 6000
"""Length of the held-out excerpt stored with its own measurements, to check the weights anywhere."""


def write_model(config: NestedConfig, decoder: Decoder, text: TrainingText, folder: Path) -> Path:
    """Write ``folder`` (made if absent) and return it.

    Rounds the decoder's weights to bfloat16, as they are stored, and measures those.
    """
    save_checkpoint(folder, decoder.to(torch.bfloat16), config.hf_config())
    shutil.copyfile(config.output / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    evaluation = evaluate_held_out(config, decoder.float(), text)
    _write_json(folder / EVALUATION_FILE, evaluation)
    grid = parse_grid(evaluation["bits_per_byte"])
    ladders = ladder_document(grid, decoder.config.architecture, layer_parameters(config), evaluation["data"])
    _write_json(folder / LADDER_FILE, ladders)
    return folder


def evaluate_held_out(config: NestedConfig, decoder: Decoder, text: TrainingText) -> dict[str, Any]:
    """The content of ``evaluation.json``: bits per byte of every sub-network, on all held-out text and on a slice."""

    def measure(texts: Sequence[str]) -> dict[str, dict[str, float]]:
        return format_grid(measure_grid(decoder, text.tokenizer, texts, config.ffn_widths, config.max_positions))

    longest = max(text.held_out, key=lambda document: len(document.text))
    excerpt = longest.text[:SLICE_CHARACTERS]
    return {
        "data": _describe(config, text),
        "context": config.max_positions,
        "held_out_files": sorted({document.path for document in text.held_out}),
        "bits_per_byte": measure([document.text for document in text.held_out]),
        "slice": {"file": longest.path, "text": excerpt, "bits_per_byte": measure([excerpt])},
        "recipe": config.to_json(),
    }


def format_grid(grid: Grid) -> dict[str, dict[str, float]]:
    """Bits per byte by width, then depth, as JSON holds them."""
    widths = sorted({width for _, width in grid})
    depths = sorted({depth for depth, _ in grid})
    return {str(width): {str(depth): round(grid[depth, width], 5) for depth in depths} for width in widths}


def parse_grid(document: dict[str, dict[str, float]]) -> dict[tuple[int, int], float]:
    """The inverse of :func:`format_grid`, to rounding."""
    return {(int(depth), int(width)): value for width, row in document.items() for depth, value in row.items()}


def _describe(config: NestedConfig, text: TrainingText) -> str:
    num_bytes = sum(len(document.text.encode()) for document in text.held_out)
    files = len({document.path for document in text.held_out})
    source = f"Python {platform.python_version()} standard library" if config.sources is None else "given sources"
    return f"{files} held-out files ({num_bytes} bytes) of the {source}; context {config.max_positions} tokens"


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
