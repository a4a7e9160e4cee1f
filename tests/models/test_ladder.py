"""Ladder files: what is read, what is refused and how it is said; names of operating points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwell.models.ladder import (
    Architecture,
    Ladder,
    LadderError,
    Level,
    SubNetwork,
    layers_from,
    load_ladders,
    parse_ladders,
    unmeasured_ladders,
)

ARCH = Architecture(num_layers=3, num_kv_groups=2, ffn_channels=8)


def document(levels: Any, **ladder: Any) -> dict[str, Any]:
    return {"format": 1, "ladders": {"steps": {"levels": levels, **ladder}}}


def only_subnet(level: dict[str, Any]) -> SubNetwork:
    return parse_ladders(document([level]), ARCH).subnet("steps:0")


@pytest.mark.parametrize(
    ("level", "kv_groups", "ffn_channels"),
    [
        ({}, (2, 2, 2), (8, 8, 8)),
        ({"layers": 1}, (2, 0, 0), (8, 0, 0)),
        ({"layers": 0}, (0, 0, 0), (0, 0, 0)),
        ({"ffn": 5}, (2, 2, 2), (5, 5, 5)),
        ({"ffn": [8, 3, 0]}, (2, 2, 2), (8, 3, 0)),
        ({"kv_groups": 1}, (1, 1, 1), (8, 8, 8)),
        ({"kv_groups": [2, 0, 1]}, (2, 0, 1), (8, 8, 8)),
        ({"drop_attention": [1]}, (2, 0, 2), (8, 8, 8)),
        ({"drop_ffn": [0, 2]}, (2, 2, 2), (0, 8, 0)),
        ({"layers": 2, "ffn": 4, "kv_groups": [1, 2, 2], "drop_attention": [1]}, (1, 0, 0), (4, 4, 0)),
    ],
)
def test_a_level_lists_what_it_leaves_out(
    level: dict[str, Any], kv_groups: tuple[int, ...], ffn_channels: tuple[int, ...]
) -> None:
    assert only_subnet(level) == SubNetwork(kv_groups, ffn_channels)


def test_depth_and_kv_layers_count_only_what_runs() -> None:
    subnet = SubNetwork((2, 0, 0, 0), (0, 0, 5, 0))
    assert (subnet.depth, subnet.kv_layers, subnet.num_units) == (3, (0,), 7)
    assert SubNetwork((0, 0), (0, 0)).depth == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], ["top level", "object", "list"]),
        ({"ladders": {}}, ["format", "expected 1", "None", "regenerate"]),
        ({"format": 2, "ladders": {}}, ["format", "expected 1", "2"]),
        ({"format": 1, "ladders": {}}, ["ladders", "non-empty", "{}"]),
        ({"format": 1, "ladders": [1]}, ["ladders", "object", "[1]"]),
        ({**document([{}]), "default": "width"}, ["default", "'width'", "choose one of ['steps']"]),
        ({**document([{}]), "default": 3}, ["default", "expected a ladder's name"]),
        ({**document([{}]), "quality_metric": "bits"}, ["quality_metric", "object"]),
        ({"format": 1, "ladders": {"a:b": {"levels": [{}]}}}, ["ladders.a:b", "name", "':'"]),
        ({"format": 1, "ladders": {"a@1": {"levels": [{}]}}}, ["ladders.a@1", "name", "'@'"]),
        ({"format": 1, "ladders": {"": {"levels": [{}]}}}, ["name", "empty"]),
        ({"format": 1, "ladders": {"steps": 5}}, ["ladders.steps", "list 'levels'", "5"]),
        (document({}), ["ladders.steps", "list 'levels'"]),
        (document([]), ["ladders.steps.levels", "empty", "at least one"]),
        (document([{}], kv="maybe"), ["ladders.steps.kv", "exact, approximate or static", "'maybe'"]),
        (document([{"layer": 2}]), ["ladders.steps.levels[0]", "'layer'", "known are", "layers"]),
        (document([{"layers": 1}, 7]), ["ladders.steps.levels[1]", "object", "7"]),
        (document([{"layers": 4}]), ["ladders.steps.levels[0].layers", "0..3", "got 4"]),
        (document([{"layers": True}]), ["levels[0].layers", "got True"]),
        (document([{"ffn": 9}]), ["levels[0].ffn", "0..8", "got 9"]),
        (document([{"ffn": 4.0}]), ["levels[0].ffn", "whole number", "got 4.0"]),
        (document([{"ffn": [8, 8]}]), ["levels[0].ffn", "3 numbers", "got 2"]),
        (document([{"ffn": [8, -1, 8]}]), ["levels[0].ffn[1]", "0..8", "got -1"]),
        (document([{"kv_groups": 3}]), ["levels[0].kv_groups", "0..2", "got 3"]),
        (document([{"kv_groups": [1, 1, "2"]}]), ["levels[0].kv_groups[2]", "got '2'"]),
        (document([{"drop_attention": [3]}]), ["levels[0].drop_attention[0]", "0..2", "got 3"]),
        (document([{"drop_ffn": 1}]), ["levels[0].drop_ffn", "list of layer indices", "got 1"]),
        (document([{"quality": 0}]), ["levels[0].quality", "(0, 1]", "got 0"]),
        (document([{"quality": 1.01}]), ["levels[0].quality", "(0, 1]", "1.01"]),
        (document([{"quality": float("nan")}]), ["levels[0].quality", "nan"]),
        (document([{"quality": "high"}]), ["levels[0].quality", "'high'"]),
        (document([{"metric": "3.4"}]), ["levels[0].metric", "number", "'3.4'"]),
        (document([{"metric": float("inf")}]), ["levels[0].metric", "number", "inf"]),
        (document([{"layers": 2}, {"layers": 1}]), ["ladders.steps.levels[1]", "level 0", "smallest"]),
        (document([{"ffn": 4}, {"layers": 2}]), ["ladders.steps.levels[1]", "level 0"]),
        (document([{"ffn": 4}, {}], kv="exact"), ["ladders.steps.kv", "'exact'", "'approximate' or 'static'"]),
    ],
)
def test_a_bad_ladder_is_refused_with_field_value_and_remedy(content: Any, told: list[str]) -> None:
    with pytest.raises(LadderError) as caught:
        parse_ladders(content, ARCH)
    for words in told:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("levels", "is_exact"),
    [
        ([{"layers": 1}, {"layers": 2}, {}], True),
        ([{"layers": 1, "ffn": 3}, {"layers": 1}, {}], True),  # no key depends on the FFN of the last attention layer
        ([{"kv_groups": 1, "layers": 1}, {}], True),  # nor on its missing heads
        ([{"kv_groups": 1}, {}], False),
        ([{"ffn": [8, 3, 8]}, {}], False),
        ([{"drop_attention": [1]}, {}], False),
        ([{"drop_ffn": [0]}, {}], False),
    ],
)
def test_exact_is_accepted_only_where_keys_and_values_are_equal(levels: list[dict[str, Any]], is_exact: bool) -> None:
    assert parse_ladders(document(levels, kv="approximate"), ARCH).ladders["steps"].kv == "approximate"
    if is_exact:
        assert parse_ladders(document(levels, kv="exact"), ARCH).ladders["steps"].kv == "exact"
    else:
        with pytest.raises(LadderError, match="exact"):
            parse_ladders(document(levels, kv="exact"), ARCH)


def test_a_ladder_without_kv_does_not_switch() -> None:
    assert parse_ladders(document([{}]), ARCH).ladders["steps"].kv == "static"


def test_names_of_operating_points() -> None:
    ladders = parse_ladders(
        {
            "format": 1,
            "default": "wide",
            "quality_metric": {"name": "bits_per_byte", "better": "lower"},
            "ladders": {
                "deep": {"levels": [{"layers": 1, "quality": 0.5, "metric": 3.25}, {}]},
                "wide": {"levels": [{"ffn": 2}, {"ffn": 4}, {}]},
            },
        },
        ARCH,
    )
    assert ladders.resolve("max") == (ladders.ladders["wide"], 2)
    assert ladders.resolve("min") == (ladders.ladders["wide"], 0)
    assert ladders.resolve("deep:0") == (ladders.ladders["deep"], 0)
    assert ladders.subnet("deep:0").depth == 1
    assert ladders.ladders["deep"].levels[0] == Level(ladders.subnet("deep:0"), 0.5, 3.25)
    assert ladders.quality_metric == {"name": "bits_per_byte", "better": "lower"}


@pytest.mark.parametrize(
    "name", ["steps", "steps:", "steps:1", "steps:-1", "steps:0.5", "steps:²", "steps: 0", "steps:x"]
)
def test_a_level_that_is_not_there(name: str) -> None:
    with pytest.raises(LadderError, match=r"operating_point: ladder 'steps' has levels 0\.\.0, got") as caught:
        parse_ladders(document([{}]), ARCH).resolve(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["", "width:0", "MAX", ":0", "9" * 5000])
def test_a_ladder_that_is_not_there(name: str) -> None:
    with pytest.raises(LadderError, match=r"operating_point: no ladder .* one of \['steps'\], or 'max' or 'min'"):
        parse_ladders(document([{}]), ARCH).resolve(name)


def test_a_level_number_of_thousands_of_digits_is_refused_like_any_other() -> None:
    with pytest.raises(LadderError, match="operating_point"):
        parse_ladders(document([{}]), ARCH).resolve("steps:" + "9" * 5000)


def test_without_a_ladder_file_there_is_the_full_model() -> None:
    ladders = unmeasured_ladders(ARCH)
    assert ladders.subnet("max") == ladders.subnet("min") == ladders.subnet("default:0") == ARCH.full


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ({"layers": 1}, {}, "exact"),
        ({"layers": 0}, {"layers": 2, "ffn": 5}, "exact"),
        ({"layers": 2, "ffn": [3, 5, 8]}, {"ffn": [3, 5, 8]}, "exact"),
        ({"layers": 2, "drop_attention": [0]}, {"drop_attention": [0]}, "exact"),
        ({"ffn": 4}, {}, "approximate"),
        ({"layers": 1, "ffn": 4}, {}, "approximate"),
        ({"layers": 2, "drop_ffn": [1]}, {}, "approximate"),
        ({"layers": 2, "kv_groups": 1}, {}, None),
        ({"kv_groups": [2, 2, 1]}, {}, None),
        ({"drop_attention": [1]}, {}, None),
        ({"layers": 1, "drop_attention": [0]}, {}, None),
    ],
)
def test_what_going_from_one_sub_network_to_another_does(one, other, kind: str | None) -> None:
    first, second = only_subnet(one), only_subnet(other)
    assert first.switch_kind(second) == second.switch_kind(first) == kind
    assert first.switch_kind(first) == "exact"


def test_a_ladder_says_among_which_levels_a_generation_may_change() -> None:
    steps: list[dict[str, Any]] = [{"layers": 1, "ffn": 4}, {"layers": 2, "ffn": 4}, {"layers": 2}, {}]
    ladder = parse_ladders(document(steps, kv="approximate"), ARCH).ladders["steps"]
    assert ladder.may_switch(range(4))
    assert not parse_ladders(document(steps), ARCH).ladders["steps"].may_switch([0, 1]), "static unless it says so"
    heads = parse_ladders(document([{"kv_groups": [2, 2, 1]}, {}], kv="exact"), ARCH).ladders["steps"]
    assert not heads.may_switch([0, 1]), "the wider one would read heads that the narrower never wrote"
    assert heads.may_switch([1])
    mixed = [{"layers": 1}, {"layers": 2, "kv_groups": [2, 1, 2]}, {}]
    broken = parse_ladders(document(mixed, kv="approximate"), ARCH).ladders["steps"]
    assert [broken.may_switch(pair) for pair in ((0, 1), (0, 2), (1, 2), (0, 1, 2))] == [True, True, False, False]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_layers_from_one_on_keep_their_widths(depth: int) -> None:
    subnet = SubNetwork((2, 1, 2), (8, 3, 0))
    rest = layers_from(subnet, depth)
    assert rest.kv_groups == (0,) * depth + (2, 1, 2)[depth:]
    assert rest.ffn_channels == (0,) * depth + (8, 3, 0)[depth:]
    assert layers_from(subnet, depth) is rest


def test_levels_must_be_nested_in_code_too() -> None:
    small, other = SubNetwork((2, 0, 0), (8, 0, 0)), SubNetwork((1, 2, 2), (8, 8, 8))
    assert not other.contains(small)
    with pytest.raises(LadderError, match="does not contain level 0"):
        Ladder("broken", (Level(small, 0.5), Level(other, 1.0)))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, json.dumps(document([{"layers": 9}])).encode()]
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ladder.json"
    path.write_bytes(content)
    with pytest.raises(LadderError) as caught:
        load_ladders(path, ARCH)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    path.write_text(json.dumps(document([{"layers": 1}, {}], kv="exact")))
    assert load_ladders(path, ARCH) == parse_ladders(json.loads(path.read_text()), ARCH)
