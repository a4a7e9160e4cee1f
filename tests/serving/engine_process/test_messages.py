"""What crosses between the processes arrives as it was."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stepwell.models.sampling import SamplingParams
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.serving.engine.events import FinishEvent, Outcome, Report, TokenEvent
from stepwell.serving.engine.job import GenerationJob
from stepwell.serving.engine.observer import StepObservation
from stepwell.serving.engine_process import messages as m
from stepwell.serving.errors import RefusedError, RequestError, Status

POINTS = {p.name: p for p in (OperatingPoint(0.1 * k, 0.1 * k, "depth", k) for k in range(1, 9))}
seconds = st.floats(0.0, allow_nan=False)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=40).map(tuple)
maybe = st.none() | st.floats(allow_nan=False)
errors = st.builds(
    lambda kind, code, text, retry: kind(code, text, retry),
    st.sampled_from([RequestError, RefusedError]),
    st.sampled_from(Status),
    st.text(),
    st.none() | st.integers(0, 10**6),
)


def through(kind: int, *items: object, chunk: int) -> list[object]:
    """As the other side reads it, in pieces of ``chunk`` bytes."""
    reader, data, read = m.reader(), m.pack(kind, *items), []
    for start in range(0, len(data), chunk):
        reader.feed(data[start : start + chunk])
        read += list(reader)
    (message,) = read
    assert message[0] == kind
    return message[1:]


@given(
    st.builds(SLO, st.text(), seconds, seconds, seconds, st.floats(0.0, 1.0), st.integers(0, 9)),
    st.lists(st.sampled_from(sorted(POINTS)), min_size=1, unique=True),
    ids,
    st.tuples(seconds, seconds, seconds),
    st.builds(SamplingParams, st.floats(0.0, 4.0), st.integers(0, 99), st.floats(0.1, 1.0), st.integers(0, 2**64 - 1)),
    st.lists(st.text()).map(tuple),
    st.booleans(),
    st.integers(1, 100),
)
def test_a_job(slo, names, prompt, times, sampling, stop, flag, chunk) -> None:
    arrival_s, hard_s, queue_s = times
    points = tuple(POINTS[name] for name in names)
    unit, reach = 1 + 3 * flag, 2.5 * flag
    request = Request("r-1", arrival_s, slo, points, len(prompt), 7, hard_s, queue_s, unit, reach, flag)
    job = GenerationJob(request, prompt, sampling, stop, flag)
    (packed,) = through(m.SUBMIT, m.from_job(job), chunk=chunk)
    assert repr(m.to_job(packed, POINTS)) == repr(job), "all fields: nan, of what has not been yet, equals nothing"


@given(ids, st.text(), st.none() | st.lists(st.floats(allow_nan=False)).map(tuple), st.integers(1, 100))
def test_tokens(token_ids, text, logprobs, chunk) -> None:
    event = TokenEvent("r", token_ids, text, logprobs)
    (packed,) = through(m.EVENTS, m.from_token(event), chunk=chunk)
    assert m.to_token(packed) == event


@given(
    st.sampled_from(Outcome), st.none() | errors, maybe, st.dictionaries(st.text(), st.integers(0, 99)), st.booleans()
)
def test_an_end(outcome, error, ms, levels, flag) -> None:
    report = Report("depth:1", 0.5, ms, ms, 1.0, 2.0, 3.0, flag, flag, ms, ms, 1, 2, 3, levels, ms, 4)
    event = FinishEvent("r", outcome, "stop", error, report, None if flag else "hopeless")
    (packed,) = through(m.EVENTS, m.from_finish(event), chunk=64)
    found = m.to_finish(packed)
    if error is not None:
        assert (type(found.error), vars(found.error)) == (type(error), vars(error))
    assert vars(found) | {"error": None} == vars(event) | {"error": None}


def test_a_step() -> None:
    step = StepObservation("mixed", 0.1, None, ("depth:0", "depth:1"), 3, 1, 0, (("tight", 0.25), ("normal", 0.5)))
    (packed,) = through(m.EVENTS, m.from_step(step), chunk=7)
    assert m.to_step(packed) == step


def test_infinity_and_nan_cross() -> None:
    infinity, nan = through(m.EVENTS, math.inf, math.nan, chunk=5)
    assert infinity == math.inf
    assert math.isnan(nan)
