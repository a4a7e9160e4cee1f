from __future__ import annotations

from stepwell.serving.errors import RequestError, Status, invalid, not_found


def test_invalid_names_field_value_and_remedy() -> None:
    error = invalid("slo_ms", "must be > 0", -3, "send the latency target in milliseconds or leave it out")
    assert error.code is Status.INVALID_ARGUMENT
    assert str(error) == error.message
    assert error.message == "slo_ms: must be > 0, got -3; send the latency target in milliseconds or leave it out"


def test_not_found() -> None:
    error = not_found("model", "gpt", "use one of ['nested-lm']")
    assert (error.code, error.message) == (Status.NOT_FOUND, "model: not found, got 'gpt'; use one of ['nested-lm']")


def test_long_values_are_cut() -> None:
    for value in ("x" * 10**6, b"x" * 10**6, list(range(10**4))):
        assert len(invalid("stop", "too long", value, "shorten it").message) < 200


def test_retry_hint() -> None:
    assert RequestError(Status.RESOURCE_EXHAUSTED, "full", 250).retry_after_ms == 250
    assert RequestError(Status.INTERNAL, "ours").retry_after_ms is None
