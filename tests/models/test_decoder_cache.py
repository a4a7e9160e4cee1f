"""Serving over pages: chunks, page sizes and places, both decode paths, sharing. Expected: the dense run of the same
sub-network over all tokens (which test_decoder_parity.py compares with transformers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepwell.models.decoder import Decoder
from stepwell.models.kernels import attention
from stepwell.models.ladder import SubNetwork
from stepwell.models.loader import LoadedModel, open_model
from stepwell.models.packed import PackedBatch, PackedSequence

TOKENS = [int(token) for token in torch.randint(0, 61, (64,), generator=torch.Generator().manual_seed(5))]
LADDERS = {
    "depth": {"levels": [{"layers": 1}, {"layers": 2}, {}], "kv": "exact"},
    "width": {"levels": [{"ffn": 9}, {"ffn": 30}, {}]},
    "drops": {"levels": [{"drop_attention": [0, 2]}, {}]},
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 5, "head_dim": 6},
    "qwen2": {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any, make_checkpoint: Any) -> LoadedModel:
    fields = MODELS[request.param]
    heads = fields["num_key_value_heads"]
    ladders = {**LADDERS, "heads": {"levels": [{"kv_groups": [heads, heads, heads // 2]}, {}]}}
    return open_model(str(make_checkpoint(request.param, ladders=ladders, **fields).path))


def dense(decoder: Decoder, subnet: SubNetwork, token_ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder.forward_dense(torch.tensor([list(token_ids)]), subnet)[-1])[0]


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.fixture
def continues(model: LoadedModel) -> Callable[..., None]:
    """``(loop, [(stream, next tokens), ...])``: the step's logits are those of a full recompute of each stream."""

    def check(loop: Any, chunks: Sequence[tuple[Any, Sequence[int]]]) -> None:
        logits = loop.step(chunks)
        for row, (stream, _) in zip(logits, chunks, strict=True):
            assert_near(row, dense(model.decoder, stream.subnet, stream.token_ids)[-1])

    return check


@pytest.mark.parametrize("shared_call_bytes", [0, 1024, 1 << 40], ids=["alone", "both", "together"])
@pytest.mark.parametrize("scattered", [False, True], ids=["contiguous", "scattered"])
@pytest.mark.parametrize("page_tokens", [3, 32])
def test_decode_over_the_cache_is_a_full_recompute(
    page_tokens: int,
    scattered: bool,
    shared_call_bytes: int,
    model: LoadedModel,
    serving_loop: Any,
    continues: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "SHARED_CALL_BYTES", shared_call_bytes)
    loop = serving_loop(model.decoder, page_tokens=page_tokens, num_pages=500)
    if scattered:
        loop.scatter_pages()
    levels = ["depth:2", "depth:1", "heads:0", "drops:0"]
    streams = [loop.open(model.ladders.subnet(level)) for level in levels]
    continues(loop, [(stream, TOKENS[: 35 - 11 * i]) for i, stream in enumerate(streams)])
    for step in range(4):
        continues(loop, [(stream, [TOKENS[40 + step + i]]) for i, stream in enumerate(streams)])
    tables = [stream.pages for stream in streams if stream.pages.num_blocks > 1]
    in_place = {pages.contiguous_start(row) >= 0 for pages in tables for row in range(pages.num_rows)}
    assert in_place == {not scattered}


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=9), page_tokens=st.integers(1, 9), level=st.integers(0, 2)
)
@pytest.mark.parametrize("ladder", ["depth", "width"])
def test_prefill_in_chunks_is_prefill_at_once(
    ladder: str, sizes: list[int], page_tokens: int, level: int, model: LoadedModel, serving_loop: Any
) -> None:
    subnet, token_ids = model.ladders.subnet(f"{ladder}:{level}"), (TOKENS * 2)[: sum(sizes)]
    chunked = serving_loop(model.decoder, page_tokens=page_tokens).replay(subnet, token_ids, sizes)
    at_once = serving_loop(model.decoder, page_tokens=page_tokens).replay(subnet, token_ids, [len(token_ids)])
    expected = dense(model.decoder, subnet, token_ids)
    assert_near(chunked, expected[torch.tensor(sizes).cumsum(0) - 1])
    assert_near(chunked[-1:], at_once)


@pytest.mark.parametrize("before", [1e9, float("nan")])
def test_what_pages_held_before_does_not_matter(
    model: LoadedModel, serving_loop: Any, continues: Callable[..., None], before: float
) -> None:
    loop = serving_loop(model.decoder)
    loop.cache.keys.fill_(before)
    loop.cache.values.fill_(before)
    streams = [loop.open(model.ladders.subnet(level)) for level in ("depth:2", "heads:0", "depth:0")]
    continues(loop, [(stream, TOKENS[: 5 + 6 * i]) for i, stream in enumerate(streams)])
    for token in TOKENS[:3]:
        continues(loop, [(stream, [token]) for stream in streams])


def test_logits_come_in_the_order_asked_for_and_only_where_wanted(model: LoadedModel, serving_loop: Any) -> None:
    loop = serving_loop(model.decoder)
    batch, expected = [], []
    for i, level in enumerate(["depth:0", "depth:2", "width:0", "depth:1", "depth:2"]):
        stream, token_ids, wanted = loop.open(model.ladders.subnet(level)), TOKENS[i : 2 * i + 3], i != 1
        loop.cache.reserve(stream.pages, len(token_ids))
        batch.append(PackedSequence(token_ids, 0, stream.subnet, stream.pages, wanted))
        if wanted:
            expected.append(dense(model.decoder, stream.subnet, token_ids)[-1])
    assert_near(model.decoder(PackedBatch.pack(batch, loop.cache)), torch.stack(expected))


@pytest.mark.parametrize("packed_bytes", [0, 1 << 24], ids=["plain", "packed"])
def test_a_chunk_in_mid_prompt_gives_no_logits(
    packed_bytes: int, model: LoadedModel, serving_loop: Any, continues: Callable[..., None]
) -> None:
    loop = serving_loop(model.decoder.prepare_serving(packed_bytes))
    stream = loop.open(model.ladders.subnet("max"))
    assert loop.step([(stream, TOKENS[:9])], wants_logits=False).shape == (0, 61)
    continues(loop, [(stream, TOKENS[9:20])])


@pytest.mark.parametrize("first_is_alive", [True, False])
def test_a_shared_prefix_gives_the_same_logits(
    first_is_alive: bool, model: LoadedModel, serving_loop: Any, continues: Callable[..., None]
) -> None:
    loop, full = serving_loop(model.decoder), model.ladders.subnet("max")
    first = loop.open(full)
    continues(loop, [(first, TOKENS[:18])])
    shared = first.pages.table[:, :3].copy()
    if not first_is_alive:
        loop.cache.free(first.pages)
    prompt = TOKENS[:14] + TOKENS[30:35]
    second = loop.open(full, prompt)
    assert second.token_ids == TOKENS[:12]
    assert (second.pages.table == shared).all()
    continues(loop, [(second, prompt[12:])])
    continues(loop, [(second, [7])])


def test_the_same_prompt_twice_computes_one_token(
    model: LoadedModel, serving_loop: Any, continues: Callable[..., None]
) -> None:
    loop, full = serving_loop(model.decoder), model.ladders.subnet("max")
    first = loop.open(full)
    continues(loop, [(first, TOKENS[:16])])
    second = loop.open(full, TOKENS[:16])
    assert len(second.token_ids) == 15
    # Both write into what was one page: the second its last prompt token, then each its own continuation.
    continues(loop, [(second, TOKENS[15:16]), (first, [3])])
    for step in range(6):
        continues(loop, [(first, [step]), (second, [50 - step])])
    third = loop.open(full, TOKENS[:17])
    assert len(third.token_ids) == 16
    continues(loop, [(third, TOKENS[16:17])])


def test_after_a_fork_neither_disturbs_the_other(
    model: LoadedModel, serving_loop: Any, continues: Callable[..., None]
) -> None:
    loop = serving_loop(model.decoder)
    first = loop.open(model.ladders.subnet("heads:0"))
    continues(loop, [(first, TOKENS[:10])])
    second = type(first)(first.subnet, loop.cache.fork(first.pages), list(first.token_ids))
    for step in range(7):
        continues(loop, [(first, [step])])
        continues(loop, [(second, [60 - step])])
    continues(loop, [(first, [1]), (second, [1])])


def test_after_going_back_other_tokens_may_follow(
    model: LoadedModel, serving_loop: Any, continues: Callable[..., None]
) -> None:
    loop = serving_loop(model.decoder)
    stream = loop.open(model.ladders.subnet("max"))
    continues(loop, [(stream, TOKENS[:15])])
    for length in (13, 4, 0):
        loop.cache.truncate(stream.pages, length)
        del stream.token_ids[length:]
        continues(loop, [(stream, TOKENS[40:49])])


@pytest.mark.parametrize(
    ("provider", "reader", "reused"),
    [
        ("depth:2", "depth:0", 12),
        ("depth:2", "depth:1", 12),
        ("depth:1", "depth:0", 12),
        ("depth:2", "heads:0", 12),  # fewer heads in the last layer only
        ("depth:0", "depth:1", 0),
        ("heads:0", "depth:2", 0),
        ("width:1", "width:2", 0),
        ("width:2", "width:0", 0),
        ("width:0", "depth:0", 12),  # keys and values of the first layer are before any FFN
        ("width:0", "depth:1", 0),
        ("drops:0", "depth:2", 0),
    ],
)
def test_a_level_reads_the_pages_of_another_where_they_are_equal(
    provider: str, reader: str, reused: int, model: LoadedModel, serving_loop: Any, continues: Callable[..., None]
) -> None:
    loop = serving_loop(model.decoder)
    first = loop.open(model.ladders.subnet(provider))
    continues(loop, [(first, TOKENS[:13])])
    second = loop.open(model.ladders.subnet(reader), TOKENS[:20])
    assert len(second.token_ids) == reused
    continues(loop, [(second, TOKENS[reused:20]), (first, TOKENS[50:52])])
    for token in TOKENS[:4]:
        continues(loop, [(second, [token]), (first, [token])])
