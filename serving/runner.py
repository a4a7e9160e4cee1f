"""The runner of a decoder: one packed forward pass and the sampling of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepwell.models.cache import PagedKVCache
from stepwell.models.decoder import Decoder
from stepwell.models.packed import PackedBatch
from stepwell.models.sampling import SampledToken, sample
from stepwell.serving.engine.step import SequenceStep


class DecoderRunner:
    """Runs steps on a decoder over a paged cache (see :class:`~stepwell.serving.engine.step.Runner`)."""

    def __init__(self, decoder: Decoder, cache: PagedKVCache) -> None:
        self.decoder, self.cache = decoder, cache

    def run(self, steps: Sequence[SequenceStep]) -> Mapping[str, SampledToken]:
        """Compute ``steps`` in one packed batch and sample where asked, by request id."""
        rows = [
            sequence
            for step in steps
            for sequence in step.exits.packed(
                step.token_ids, step.start, step.subnet, step.pages, step.sampling is not None
            )
        ]
        logits, states = self.decoder.forward_keeping(PackedBatch.pack(rows, self.cache))
        sampled = [step for step in steps if step.sampling is not None]
        tokens = sample(logits, [s.sampling for s in sampled if s.sampling], [s.sample_index for s in sampled])
        kept = [segment for step in steps for segment in step.exits.kept]
        for segment, hidden in zip(kept, states, strict=True):
            segment.hidden = [hidden]
        return {step.request_id: token for step, token in zip(sampled, tokens, strict=True)}
