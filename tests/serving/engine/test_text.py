"""Streamed text and stop strings through the engine, with a tokenizer of single bytes and a scripted model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from stepwell.models.sampling import SampledToken
from stepwell.models.tokenizer import Tokenizer
from stepwell.serving.engine.events import TokenEvent


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = tokenizers.Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    bytewise.save(str(path))
    return Tokenizer.from_file(path)


class Scripted:
    """Says the same to everybody, token by token."""

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = token_ids

    def run(self, steps) -> dict[str, SampledToken]:
        return {s.request_id: SampledToken(self.token_ids[s.sample_index], None) for s in steps if s.sampling}


@pytest.fixture
def say(make_world, tokenizer):
    """``say(text, **request)`` -> (world, request) after the model has said ``text``."""

    def run(text: str, **request):
        ids = tokenizer.encode(text)
        world = make_world(runner=Scripted(ids), tokenizer=tokenizer, eos=set(tokenizer.encode("\n")))
        request_id = world.submit(max_tokens=request.pop("max_tokens", len(ids)), **request)
        world.run()
        return world, request_id

    return run


def test_text_is_streamed_as_it_comes(say) -> None:
    world, request = say("steps down")
    assert world.text(request) == "steps down"
    assert [event.text for event in world.events[request][:3]] == ["s", "t", "e"]


def test_characters_are_never_cut(say, tokenizer) -> None:
    world, request = say("a€b")
    assert [e.text for e in world.events[request] if isinstance(e, TokenEvent)] == ["a", "", "", "€", "b"]
    assert world.tokens(request) == tokenizer.encode("a€b")


def test_a_stop_string_ends_the_output_and_is_not_part_of_it(say, tokenizer) -> None:
    world, request = say("one two END three", stop=("END", "three"))
    assert world.text(request) == "one two "
    assert world.end(request).finish_reason == "stop"
    assert world.tokens(request) == tokenizer.encode("one two END"), "ids are what the model said"


def test_held_back_text_is_sent_at_the_end(say) -> None:
    world, request = say("one EN", stop=("END",))
    assert world.text(request) == "one EN"
    assert world.end(request).finish_reason == "length"


def test_the_end_of_sequence_token_is_no_text(say, tokenizer) -> None:
    world, request = say("two EN\nfour", stop=("END",))
    assert (world.text(request), world.end(request).finish_reason) == ("two EN", "stop")
    assert world.tokens(request) == tokenizer.encode("two EN\n")
    world, request = say("two\nfour", ignore_eos=True)
    assert (world.text(request), world.end(request).finish_reason) == ("two\nfour", "length")


def test_stopping_on_the_last_token_counts_as_stop(say) -> None:
    world, request = say("xSTOP", stop=("STOP",))
    assert (world.text(request), world.end(request).finish_reason) == ("x", "stop")


def test_a_put_back_request_streams_each_character_once(make_world, tokenizer) -> None:
    ids = tokenizer.encode("water is deep")
    world = make_world(runner=Scripted(ids), tokenizer=tokenizer, num_pages=15, page_tokens=4)
    requests = [world.submit([n], len(ids)) for n in range(3)]
    world.run()
    assert sum(world.end(r).report.preemptions for r in requests)
    assert {world.text(r) for r in requests} == {"water is deep"}
