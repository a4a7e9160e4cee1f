"""What one training run does: frozen, written into every checkpoint, compared on resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from stepwell.models.training.bpe import END_OF_TEXT_ID

Sampling = Literal["sorted", "plain"]


@dataclass(frozen=True)
class NestedConfig:
    """Recipe of a nested decoder. The defaults are the recipe of the shipped ``nested-lm``."""

    output: Path
    """Folder the run writes: tokenizer, checkpoints, and at the end the model directory."""
    sources: Path | None = None
    """Folder of text files to learn; None = the running Python's standard library."""
    held_out_share: float = 0.05
    """Expected share of files that are measured on and never trained on."""

    vocab_size: int = 2048
    hidden_size: int = 192
    num_layers: int = 8
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    ffn_widths: tuple[int, ...] = (128, 256, 384, 512)
    """Ascending FFN channels that are trained to work as a prefix; the last is the full width."""
    max_positions: int = 1024
    """Context length in tokens of the finished model."""

    sampling: Sampling = "sorted"
    """``sorted``: sampled sub-networks; ``plain``: the full network only, for comparison."""
    micro_batches: int = 2
    """Sub-networks sampled and accumulated per optimiser step (g_acc of SortedNet, arXiv 2309.00255)."""
    full_width_share: float = 0.5
    """Share of the micro-batches of a step that run at full width; the rest draw a smaller width."""
    num_exits: int = 2
    """Shallower depths sampled per micro-batch beside its full depth."""
    exit_weight: float = 0.3
    """Weight of the mean loss of the sampled exits; the full depth has the rest."""

    num_steps: int = 2400
    tokens_per_step: int = 2048
    context: int = 256
    """Tokens per sequence for most of the run: short ones cost less attention."""
    long_context_share: float = 0.25
    """Share of the steps, at the end, that train on sequences of ``max_positions`` tokens."""
    learning_rate: float = 6e-3
    """Highest rate of Muon, for the layers' matrices."""
    embedding_rate: float = 4e-3
    """Highest rate of AdamW, for the embedding and the norms."""
    warmup_steps: int = 60
    decay_share: float = 0.4
    """Share of the steps, at the end, over which the rate falls linearly to zero."""
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0
    bf16: bool = True
    """Run matrix products in bfloat16 (weights, gradients and optimiser stay float32)."""
    checkpoint_every: int = 50
    """Optimiser steps between checkpoints."""

    def __post_init__(self) -> None:
        self._check_numbers()
        per_micro_batch, rest = divmod(self.tokens_per_step, self.micro_batches)
        for name, length in (("context", self.context), ("max_positions", self.max_positions)):
            if rest or per_micro_batch % length:
                raise ValueError(
                    f"tokens_per_step: expected a multiple of micro_batches x {name} = {self.micro_batches * length}, "
                    f"got {self.tokens_per_step}; change one of them"
                )

    def _check_numbers(self) -> None:
        if not self.ffn_widths or list(self.ffn_widths) != sorted(set(self.ffn_widths)) or self.ffn_widths[0] < 1:
            raise ValueError(f"ffn_widths: expected ascending numbers >= 1, got {self.ffn_widths}; reorder them")
        if not 0 <= self.num_exits < self.num_layers:
            raise ValueError(f"num_exits: must be below num_layers {self.num_layers}, got {self.num_exits}; lower it")
        if self.sampling not in ("sorted", "plain"):
            raise ValueError(f"sampling: expected sorted or plain, got {self.sampling!r}; choose one of them")
        for name in ("num_steps", "micro_batches", "tokens_per_step", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be >= 1, got {getattr(self, name)}; raise it")
        for name in ("held_out_share", "full_width_share", "exit_weight", "decay_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a share in (0, 1], got {getattr(self, name)}; change it")

    @property
    def ffn_channels(self) -> int:
        return self.ffn_widths[-1]

    def context_at(self, step: int) -> int:
        """Tokens per sequence at this step."""
        return self.max_positions if step >= self.num_steps * (1.0 - self.long_context_share) else self.context

    def to_json(self) -> dict[str, Any]:
        """The recipe without the folders, as JSON holds it. Two runs with the same one learn the same weights."""
        document = {key: value for key, value in asdict(self).items() if key not in ("output", "sources")}
        return {**document, "ffn_widths": list(self.ffn_widths)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], output: Path, sources: Path | None = None) -> NestedConfig:
        """The inverse of :meth:`to_json`. Raises ValueError for a field this version does not know."""
        if unknown := set(document) - {item.name for item in fields(cls)}:
            raise ValueError(f"{sorted(unknown)[0]}: not a field of the recipe; the checkpoint is of another version")
        values = {**document, "ffn_widths": tuple(document["ffn_widths"])}
        return cls(output=output, sources=sources, **values)

    def hf_config(self) -> dict[str, Any]:
        """``config.json`` of the model: Hugging Face's Llama layout."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_channels,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "torch_dtype": "bfloat16",
        }
