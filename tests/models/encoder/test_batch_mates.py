"""What a text gets does not depend on its batch-mates: random mixes of levels, ladders and lengths, split or wide,
packed or plain, against each text alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.models.encoder import Encoder
from stepwell.models.encoder.batch import TextBatch
from stepwell.models.one_shot import Item
from stepwell.models.packed import plan_layers

LEVELS: list[dict[str, Any]] = [
    {},
    {"layers": 1},
    {"layers": 2},
    {"ffn": 7},
    {"ffn": [20, 9, 30]},
    {"kv_groups": 1},
    {"kv_groups": [1, 3, 2]},
    {"kv_groups": [2, 1, 0]},
    {"kv_groups": [3, 4, 1], "ffn": [5, 48, 11]},
    {"drop_attention": [0, 1], "drop_ffn": [2]},
    {"layers": 2, "ffn": 30, "kv_groups": 1},
]


@pytest.fixture(scope="module", params=[("bert", "masked_lm"), ("albert", "sequence"), ("roberta", "token")])
def encoder(request: Any, make_encoder: Any) -> Encoder:
    from stepwell.models.encoder import load_encoder

    return load_encoder(make_encoder(*request.param).path)


requests = st.tuples(st.sampled_from(LEVELS), st.lists(st.integers(0, 60), min_size=1, max_size=30))


@settings(max_examples=25)
@given(batch=st.lists(requests, min_size=1, max_size=7), data=st.data())
def test_a_mix_of_any_levels(
    batch: list[tuple[dict[str, Any], list[int]]],
    data: st.DataObject,
    encoder: Encoder,
    subnet_of: Any,
    run_items: Any,
    assert_same: Any,
) -> None:
    coin = random.Random(data.draw(st.integers(0, 99), label="seed of the wide rule"))
    chance = data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="chance of wide")
    encoder.prepare_serving(data.draw(st.sampled_from([0, 20_000, 1 << 24]), label="packed bytes"))
    encoder.linear.pads_rows = data.draw(st.booleans(), label="rows are padded")
    token_ids = [torch.tensor(ids) for _, ids in batch]
    subnets = [subnet_of(encoder, **level) for level, _ in batch]
    encoder.run_wide = lambda *_: coin.random() < chance
    together = run_items(encoder, token_ids, subnets)
    encoder.run_wide = None
    for ids, subnet, ours in zip(token_ids, subnets, together, strict=True):
        assert_same(ours, run_items(encoder, [ids], [subnet])[0])


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), data=st.data(), padded=st.booleans())
def test_every_token_is_packed_once_and_wider_rows_come_first(
    lengths: list[int], data: st.DataObject, padded: bool, encoder: Encoder, subnet_of: Any
) -> None:
    items = [
        Item(torch.full((length,), index), subnet_of(encoder, **data.draw(st.sampled_from(LEVELS[:3]))))
        for index, length in enumerate(lengths)
    ]
    batch = TextBatch.pack(items, padded)
    assert sorted(batch.order) == list(range(len(items)))
    for place, rows, length in zip(batch.order, batch.rows, batch.lengths, strict=True):
        assert batch.token_ids[rows].tolist() == [place] * lengths[place]
        assert batch.positions[rows].tolist() == list(range(length))
    assert sum(batch.num_rows) == len(batch.token_ids) >= sum(lengths)
    assert padded or len(batch.token_ids) == sum(lengths)
    for plan in plan_layers(batch.subnets, batch.num_rows):
        assert all(isinstance(span.rows, int) for span in (*plan.attention, *plan.ffn))


def test_a_text_that_overflows_spoils_no_other(
    encoder: Encoder, subnet_of: Any, texts: Any, run_items: Any, assert_same: Any
) -> None:
    good, levels = texts(4, 9, 9), [{}, {"ffn": 7}, {"layers": 2}]
    subnets = [subnet_of(encoder, **level) for level in levels]
    alone = [run_items(encoder, [ids], [subnet])[0] for ids, subnet in zip(good, subnets, strict=True)]
    unused = next(token for token in range(61) if not any(token in ids for ids in good))
    kept = encoder.embeddings.word.weight[unused].clone()
    encoder.embeddings.word.weight[unused] = torch.inf
    together = run_items(encoder, [torch.full((9,), unused), *good], [encoder.config.architecture.full, *subnets])
    encoder.embeddings.word.weight[unused] = kept
    assert together[0]["embedding"].isnan().any()
    for ours, theirs in zip(together[1:], alone, strict=True):
        for name in ("embedding", "last_hidden_state"):
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)
