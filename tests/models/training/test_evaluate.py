"""Bits per byte against a computation by hand, and the chain of levels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.training.bpe import END_OF_TEXT_ID, train_tokenizer
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.evaluate import measure_grid
from stepwell.models.training.levels import best_chain, ladder_document, quality
from stepwell.models.training.nested import new_decoder
from stepwell.models.training.sampling import rectangle

GRIDS = st.integers(1, 5).flatmap(
    lambda depths: st.lists(
        st.lists(st.floats(0.5, 5.0), min_size=3, max_size=3), min_size=depths, max_size=depths
    ).map(lambda rows: {(d + 1, 8 * (w + 1)): v for d, row in enumerate(rows) for w, v in enumerate(row)})
)


def test_bits_per_byte_counts_every_token_once(recipe: NestedConfig) -> None:
    texts = ["def f(x):\n    return x\n" * 9, "naïve = 'é'\n"]
    tokenizer = train_tokenizer(texts, recipe.vocab_size)
    decoder = new_decoder(recipe)
    grid = measure_grid(decoder, tokenizer, texts, (16, 32), context=16)
    stream = [END_OF_TEXT_ID]
    for text in texts:
        stream += [*tokenizer.encode(text).ids, END_OF_TEXT_ID]
    num_bytes = sum(len(text.encode()) for text in texts)
    for depth, width in grid:
        nats = 0.0
        for start in range(0, len(stream) - 1, 16):
            window = torch.tensor([stream[start : start + 17]])
            subnet = rectangle(decoder.config.architecture, depth, width)
            with torch.no_grad():
                (state,) = decoder.forward_dense(window[:, :-1], subnet)
                scores = decoder.logits(state)[0].log_softmax(-1)
            nats -= float(scores[torch.arange(window.shape[1] - 1), window[0, 1:]].sum())
        assert grid[depth, width] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


@given(GRIDS)
def test_the_chain_is_nested_and_always_improves(grid: dict[tuple[int, int], float]) -> None:
    chain = best_chain(grid, attention_parameters=100, channel_parameters=3)
    assert chain[0] == min(grid)
    assert chain[-1] == max(grid)
    for small, large in itertools.pairwise(chain):
        assert small != large
        assert small[0] <= large[0]
        assert small[1] <= large[1]
        assert grid[large] < grid[small] or large == max(grid)


def test_the_chain_takes_the_better_way_round() -> None:
    depth_first = {(1, 8): 4.0, (2, 8): 2.0, (1, 16): 3.9, (2, 16): 1.0}
    assert best_chain(depth_first, 100, 3) == [(1, 8), (2, 8), (2, 16)]
    width_first = {(1, 8): 4.0, (2, 8): 3.9, (1, 16): 2.0, (2, 16): 1.0}
    assert best_chain(width_first, 100, 3) == [(1, 8), (1, 16), (2, 16)]


def test_quality_is_relative_and_capped(recipe: NestedConfig) -> None:
    grid = {(1, 16): 4.0, (2, 16): 1.9, (3, 16): 3.0, (1, 32): 4.0, (2, 32): 2.5, (3, 32): 2.0}
    assert quality(grid, (1, 16)) == 0.5
    assert quality(grid, (2, 16)) == 1.0
    architecture = new_decoder(recipe).config.architecture
    document = ladder_document(grid, architecture, (100, 3), "by hand")
    assert [level["metric"] for level in document["ladders"]["depth"]["levels"]] == [4.0, 2.5, 2.0]
    assert document["ladders"]["depth"]["kv"] == "exact"
    assert document["ladders"]["width"]["kv"] == document["ladders"]["default"]["kv"] == "approximate"
