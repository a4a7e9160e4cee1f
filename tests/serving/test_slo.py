"""Precedence and validation of service-level objectives."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.serving.config import ServerConfig, SLOClass
from stepwell.serving.errors import RequestError, Status
from stepwell.serving.slo import MARGIN_RATIO, MARGIN_S, ParsedSLO, parse_slo

NOW = 1000.0
CLASSES = {
    "default": SLOClass(),
    "tight": SLOClass(ttft_ms=100.0, tpot_ms=20.0, priority=1),
    "batch": SLOClass(deadline_ms=60_000.0, min_quality=0.9, priority=9),
}


def parse(
    parameters: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
    remaining: float | None = None,
    default: str = "default",
) -> ParsedSLO:
    return parse_slo(
        time_remaining_s=remaining,
        metadata=metadata or {},
        parameters=parameters or {},
        classes=CLASSES,
        default_class=default,
        now=NOW,
    )


def test_nothing_asked_is_the_default_class() -> None:
    parsed = parse()
    assert parsed.slo.slo_class == "default"
    assert not parsed.slo.asks_latency
    assert parsed.hard_deadline_s == parsed.queue_deadline_s == math.inf
    assert parsed.operating_point is None
    assert parsed.token_budget is None


def test_default_class_of_the_model_gives_all_its_objectives() -> None:
    slo = parse(default="tight").slo
    assert (slo.slo_class, slo.ttft_s, slo.tpot_s, slo.deadline_s, slo.priority) == ("tight", 0.1, 0.02, math.inf, 1)


def test_any_stated_latency_displaces_the_default_class_but_not_its_quality_floor() -> None:
    slo = parse({"ttft_ms": 70}, default="batch").slo
    assert (slo.ttft_s, slo.deadline_s, slo.min_quality) == (0.07, math.inf, 0.9)


@pytest.mark.parametrize("source", ["parameters", "metadata"])
def test_a_named_class_displaces_the_default_class_even_if_it_asks_for_nothing(source: str) -> None:
    named = {"slo_class": "default"} if source == "parameters" else {"x-stepwell-slo-class": "default"}
    slo = parse(**{source: named}, default="batch").slo  # type: ignore[arg-type]
    assert (slo.slo_class, slo.asks_latency, slo.min_quality) == ("default", False, 0.0)


@pytest.mark.parametrize(("name", "field"), [("slo_ms", "deadline_s"), ("ttft_ms", "ttft_s"), ("tpot_ms", "tpot_s")])
@pytest.mark.parametrize("value", [250, 250.0, "250", " 2.5e2 ", 2**63])
def test_latencies_in_every_form(name: str, field: str, value: Any) -> None:
    assert getattr(parse({name: value}).slo, field) == float(value) / 1000


def test_metadata_wins_over_parameters() -> None:
    metadata = {
        "x-stepwell-slo-ms": "50",
        "x-llm-d-slo-ttft-ms": "20",
        "x-slo-tpot-ms": "5",
        "x-stepwell-slo-class": "tight",
        "x-stepwell-min-quality": "0.5",
    }
    parameters = {"slo_ms": 1.0, "ttft_ms": 2, "tpot_ms": 3, "slo_class": "batch", "min_quality": 0.1}
    slo = parse(parameters, metadata).slo
    assert (slo.deadline_s, slo.ttft_s, slo.tpot_s, slo.slo_class, slo.min_quality) == (0.05, 0.02, 0.005, "tight", 0.5)


@pytest.mark.parametrize("kind", ["ttft", "tpot"])
def test_canonical_metadata_key_wins_over_its_alias(kind: str) -> None:
    slo = parse(metadata={f"x-slo-{kind}-ms": "9", f"x-llm-d-slo-{kind}-ms": "7"}).slo
    assert getattr(slo, f"{kind}_s") == 0.007


def test_a_number_wins_over_the_class_beside_it_and_the_class_fills_the_rest() -> None:
    slo = parse({"slo_class": "tight", "ttft_ms": 55}).slo
    assert (slo.ttft_s, slo.tpot_s, slo.slo_class) == (0.055, 0.02, "tight")


def test_class_in_metadata_wins_over_numbers_in_parameters() -> None:
    slo = parse({"ttft_ms": 5000, "slo_ms": 7000}, {"x-stepwell-slo-class": "tight"}).slo
    assert (slo.ttft_s, slo.deadline_s) == (0.1, 7.0)


@pytest.mark.parametrize("remaining", [0.01, 0.08, 0.1, 5.0, 0.0])
def test_grpc_deadline_bounds_less_a_margin(remaining: float) -> None:
    parsed = parse({"slo_ms": 1e9}, remaining=remaining)
    margin = min(MARGIN_S, remaining * MARGIN_RATIO)
    assert parsed.hard_deadline_s == pytest.approx(NOW + remaining - margin, abs=1e-12)
    assert parsed.slo.deadline_s == 1e6, "what was asked is reported as asked"


def test_timeout_is_a_queue_deadline_in_microseconds() -> None:
    assert parse({"timeout": 2_500_000}).queue_deadline_s == NOW + 2.5
    assert parse({"timeout": 0}).queue_deadline_s == math.inf


def test_explicit_priority_wins_over_the_class() -> None:
    assert parse({"slo_class": "batch"}).slo.priority == 9
    assert parse({"slo_class": "batch", "priority": 2}).slo.priority == 2
    assert parse({"slo_class": "batch", "priority": 0}).slo.priority == 9


def test_operating_point_and_token_budget_are_handed_on() -> None:
    parsed = parse({"operating_point": "depth:3", "token_budget": 0.5})
    assert (parsed.operating_point, parsed.token_budget) == ("depth:3", 0.5)


def test_standard_keys_without_meaning_here_are_tolerated() -> None:
    keys = {"sequence_id": 7, "sequence_start": True, "sequence_end": False, "binary_data_output": True}
    keys |= {"triton_enable_empty_final_response": True, "max_tokens": 4, "temperature": 0.5}
    assert parse(keys) == parse()


LATENCIES = ["slo_ms", "ttft_ms", "tpot_ms"]
NOT_A_LATENCY = [0, -3, -0.5, 0.0, math.nan, math.inf, -math.inf, True, False, "", "fast", "nan", "-1", "1_0", "0x10"]


@pytest.mark.parametrize("key", LATENCIES)
@pytest.mark.parametrize("value", NOT_A_LATENCY)
def test_nonsense_latency_parameters(key: str, value: Any) -> None:
    expect_error({key: value}, {}, key, value)


@pytest.mark.parametrize(
    "key", ["x-stepwell-slo-ms", "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"]
)
@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf", "", "fast", "1e999"])
def test_nonsense_latency_metadata_even_if_another_key_would_win(key: str, value: str) -> None:
    others = {k: "5" for k in ("x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms") if k != key}
    expect_error({}, {**others, key: value}, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_quality", 0),
        ("min_quality", 1.01),
        ("min_quality", math.nan),
        ("min_quality", "good"),
        ("token_budget", 0.0),
        ("token_budget", 2),
        ("slo_class", "gold"),
        ("slo_class", ""),
        ("slo_class", 3),
        ("operating_point", 3),
        ("operating_point", ""),
        ("timeout", -1),
        ("timeout", 1.5),
        ("timeout", math.nan),
        ("priority", -1),
        ("priority", "high"),
    ],
)
def test_other_nonsense(key: str, value: Any) -> None:
    expect_error({key: value}, {}, key, value)


@pytest.mark.parametrize("key", ["x-stepwell-slo-class", "x-stepwell-min-quality"])
def test_nonsense_metadata(key: str) -> None:
    expect_error({}, {key: "gold"}, key, "gold")


@pytest.mark.parametrize(
    ("key", "near"), [("slo_sm", "slo_ms"), ("minquality", "min_quality"), ("triton_final", "triton_final_response")]
)
def test_unknown_parameter_names_the_nearest_known_key(key: str, near: str) -> None:
    assert repr(near) in expect_error({key: 1}, {}, key, 1)


def test_unknown_reserved_key_is_called_reserved() -> None:
    assert "reserved" in expect_error({"triton_magic": True}, {}, "triton_magic", True)


def test_unknown_own_metadata_is_refused_and_foreign_metadata_ignored() -> None:
    assert "x-stepwell-slo-ms" in expect_error({}, {"x-stepwell-slo": "5"}, "x-stepwell-slo", "5")
    assert parse(metadata={"user-agent": "x", "x-request-id": "nan"}) == parse()


def test_nonsense_in_parameters_is_refused_even_where_metadata_wins() -> None:
    expect_error({"slo_ms": -1}, {"x-stepwell-slo-ms": "50"}, "slo_ms", -1)


def expect_error(parameters: dict[str, Any], metadata: dict[str, str], key: str, value: Any) -> str:
    with pytest.raises(RequestError) as caught:
        parse(parameters, metadata)
    assert caught.value.code is Status.INVALID_ARGUMENT
    assert caught.value.message.startswith(f"{key}: ")
    assert repr(value) in caught.value.message
    return caught.value.message


values = st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text("0159.-+einfa ", max_size=6))
keys = st.sampled_from(
    [*LATENCIES, "slo_class", "min_quality", "operating_point", "token_budget", "timeout", "priority"]
)


@given(st.dictionaries(keys, values, max_size=4), st.none() | st.floats(0, 1e6))
def test_anything_is_either_refused_with_its_key_or_yields_sane_objectives(
    parameters: dict[str, Any], remaining: float | None
) -> None:
    parsed = parse_or_error(parameters, remaining)
    if isinstance(parsed, RequestError):
        assert parsed.code is Status.INVALID_ARGUMENT
        assert parsed.message.split(":")[0] in parameters
        return
    slo = parsed.slo
    assert min(slo.deadline_s, slo.ttft_s, slo.tpot_s) > 0
    assert 0.0 <= slo.min_quality <= 1.0
    assert slo.priority >= 0
    assert parsed.hard_deadline_s <= NOW + (math.inf if remaining is None else remaining)
    assert parsed.queue_deadline_s >= NOW


def parse_or_error(parameters: dict[str, Any], remaining: float | None) -> ParsedSLO | RequestError:
    try:
        return parse(parameters, remaining=remaining)
    except RequestError as error:
        return error


@given(st.sampled_from([0.001, 1, 37.5, 1e6]), st.sampled_from([2.0, 99, 1e5]))
def test_metadata_decides_whatever_the_parameters_say(in_metadata: float, in_parameters: float) -> None:
    slo = parse({"slo_ms": in_parameters}, {"x-stepwell-slo-ms": str(in_metadata)}).slo
    assert slo.deadline_s == pytest.approx(in_metadata / 1000)


def test_built_in_classes_are_usable() -> None:
    for name in ServerConfig().slo_classes:
        parsed = parse_slo(
            time_remaining_s=None, metadata={}, parameters={"slo_class": name}, classes=ServerConfig().slo_classes,
            default_class="default", now=NOW,
        )  # fmt: skip
        assert parsed.slo.slo_class == name
        assert parsed.slo.asks_latency == (name != "default")
