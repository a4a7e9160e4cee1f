"""Texts of ragged lengths through a BERT: packed against padded, and against others: ``python benchmarks/encoders.py``.

The shapes of BERT-base (768 wide, 12 heads, FFN 3072) with three of its layers and random weights; lengths lognormal,
on average about a third of the longest. The ideal gain is that of computing no padding at all: 1 / (1 - its share).
Rivals run padded with a mask, each in its best form here: transformers with SDPA, torch's encoder on nested tensors,
ONNX Runtime with its fused graph (``pip install onnx onnxruntime``; left out where they are missing).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, least_seconds, report
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from stepwell.models.encoder import Encoder, load_encoder
from stepwell.models.one_shot import Item

NUM_LAYERS = 3
MEAN_SHARE = 0.35
"""Of the longest text, on average, before the draw is cut off there."""
SIGMA = 0.6


@dataclass(frozen=True)
class Load:
    """The same texts, packed and padded."""

    texts: list[Tensor]
    ids: Tensor
    """int64 [N, longest]."""
    mask: Tensor

    @classmethod
    def lognormal(cls, num_texts: int, longest: int, vocab_size: int) -> Load:
        rng = np.random.default_rng(num_texts * longest)
        lengths = rng.lognormal(np.log(MEAN_SHARE * longest) - SIGMA**2 / 2, SIGMA, num_texts)
        lengths = np.clip(lengths.round().astype(int), 4, longest)
        lengths[0] = longest
        texts = [torch.from_numpy(rng.integers(5, vocab_size, n)) for n in lengths]
        ids, mask = (torch.zeros(num_texts, longest, dtype=torch.long) for _ in range(2))
        for i, text in enumerate(texts):
            ids[i, : len(text)], mask[i, : len(text)] = text, 1
        return cls(texts, ids, mask)

    @property
    def ideal(self) -> float:
        """Padded tokens over tokens."""
        return self.ids.numel() / int(self.mask.sum())


def ours(encoder: Encoder, texts: Sequence[Tensor]) -> Callable[[], object]:
    """Stepwell's encoder: an embedding a text."""
    items = [Item(text, encoder.config.architecture.full) for text in texts]
    return lambda: encoder.run(items, ("embedding",))


def hugging_face(model: BertModel, load: Load) -> Callable[[], object]:
    """The reference, padded with a mask."""

    @torch.inference_mode()
    def run() -> object:
        return model(load.ids, attention_mask=load.mask).last_hidden_state

    return run


def nested(config: BertConfig, load: Load, dtype: torch.dtype) -> Callable[[], object]:
    """Torch's encoder with the same sizes; it takes the padding away inside, as nested tensors."""
    layer = nn.TransformerEncoderLayer(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, activation="gelu", batch_first=True
    )
    encoder = nn.TransformerEncoder(layer, NUM_LAYERS, enable_nested_tensor=True).to(dtype).eval()
    table = nn.Embedding(config.vocab_size, config.hidden_size).to(dtype)
    padding = load.mask == 0

    @torch.inference_mode()
    def run() -> object:
        return encoder(table(load.ids), src_key_padding_mask=padding)

    return run


def onnx_runtime(model: BertModel, load: Load, folder: Path, threads: int) -> Callable[[], object] | None:
    """None where it is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        from onnxruntime.transformers import optimizer
    except ImportError:
        return None
    path, fused = folder / "bert.onnx", folder / "fused.onnx"
    if not fused.exists():
        inputs: Any = (load.ids, load.mask)
        axes = {name: {0: "texts", 1: "tokens"} for name in ("input_ids", "attention_mask", "last_hidden_state")}
        names = ["input_ids", "attention_mask"]
        torch.onnx.export(
            _Plain(model), inputs, str(path), input_names=names, output_names=["last_hidden_state"], dynamic_axes=axes,
            dynamo=False,
        )  # fmt: skip
        config = model.config
        found = optimizer.optimize_model(
            str(path), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=1
        )
        found.save_model_to_file(str(fused))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(fused), options, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": load.ids.numpy(), "attention_mask": load.mask.numpy()}
    return lambda: session.run(None, feeds)


class _Plain(nn.Module):
    """Positional arguments for the exporter."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.model(ids, attention_mask=mask).last_hidden_state
        return hidden


def measure(dtype: torch.dtype, threads: int, repeats: int, cases: Sequence[tuple[int, int]]) -> list[list[str]]:
    """A row a case."""
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=NUM_LAYERS, attn_implementation="sdpa")
    model = BertModel(config, add_pooling_layer=False).eval()
    eager = BertModel(BertConfig(num_hidden_layers=NUM_LAYERS, attn_implementation="eager"), False).eval()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        encoder = load_encoder(folder, dtype=dtype).prepare_serving(1 << 31)
        reference = model.to(dtype)
        for num_texts, longest in cases:
            load = Load.lognormal(num_texts, longest, config.vocab_size)
            full = [torch.cat([text, text.new_full((longest - len(text),), 5)]) for text in load.texts]
            runs: dict[str, Callable[[], object] | None] = {
                "packed": ours(encoder, load.texts),
                "padded": ours(encoder, full),
                "transformers": hugging_face(reference, load),
                "nested": nested(config, load, dtype),
                "onnx": onnx_runtime(eager, load, folder, threads) if dtype == torch.float32 else None,
            }
            seconds = least_seconds({key: run for key, run in runs.items() if run is not None}, repeats)
            gain = seconds["padded"] / seconds["packed"]
            others = [seconds[key] / seconds["packed"] if key in seconds else None for key in list(runs)[2:]]
            rows.append(
                [
                    str(dtype).removeprefix("torch."),
                    f"{num_texts} x {longest}",
                    f"{load.ideal:.2f}",
                    f"{1e3 * seconds['packed']:.0f}",
                    f"{gain:.2f}",
                    f"{gain / load.ideal:.0%}",
                    *("-" if other is None else f"{other:.2f}" for other in others),
                ]
            )
    return rows


def main() -> None:
    """The table."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of these")
    parser.add_argument("--cases", default="8x128,8x512,32x128,32x512", help="texts x tokens of the longest")
    parser.add_argument("--bfloat16-cases", default="8x128,32x128", help="the same for bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.dtypes.split(","):
        asked = args.cases if name == "float32" else args.bfloat16_cases
        cases = [(int(texts), int(longest)) for texts, longest in (case.split("x") for case in asked.split(","))]
        rows += measure(getattr(torch, name), args.threads, args.repeats, cases)
    header = ["type", "texts x longest", "ideal", "packed, ms", "padded / packed", "of ideal", "transformers / packed"]
    header += ["nested / packed", "ONNX Runtime / packed"]
    notes = (
        f"Processor time, the least of {args.repeats}, interleaved; above 1 = packed is faster. Ideal: padded tokens "
        "over tokens. Padding also costs attention its square, so packing can win more than the ideal. ONNX Runtime "
        "runs float32: its CPU provider has no bfloat16."
    )
    report("encoders", "Packed text encoder, BERT-base shapes, 3 layers", header, rows, notes, args.save)


if __name__ == "__main__":
    main()
