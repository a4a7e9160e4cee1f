"""Refusals that hold for others: only where admission would refuse too, in the same words, counted the same way."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.plan import Limits, StepPlan
from stepwell.schedulers.request import SLO, OperatingPoint, Request
from stepwell.schedulers.staircase import Staircase
from stepwell.serving.call import GenerateCall
from stepwell.serving.errors import RefusedError, Status
from stepwell.serving.verdicts import CERTAIN, HOLD_S, Asked, Verdicts, wishes_of

POINTS = (OperatingPoint(0.25, 0.5, "depth", 0), OperatingPoint(1.0, 1.0, "depth", 1))
MODEL = StepCostModel.linear(POINTS, full_row_s=0.002, overhead_s=0.001)
REFUSED = RefusedError(Status.RESOURCE_EXHAUSTED, "slo: no", 100, "hopeless", 0.1)
ALONE = RefusedError(Status.DEADLINE_EXCEEDED, "slo: never", None, "hopeless", 0.1)


def asked(
    prompt: int = 50, most: int = 10, arrival_s: float = 0.0, hard_s: float = math.inf, wishes: str = "w"
) -> Asked:
    return Asked(wishes, prompt, most, arrival_s, hard_s)


def after(first: Asked, error: RefusedError = REFUSED, at_s: float = 0.0) -> Verdicts:
    verdicts = Verdicts()
    verdicts.learn(first, "gold", error, at_s)
    return verdicts


def test_the_engines_words_are_repeated_with_what_is_left_of_the_hint() -> None:
    found = after(asked()).on(asked(arrival_s=0.01), 0.0302)
    assert found is not None
    error, slo_class = found
    assert (error.code, error.message, error.reason) == (REFUSED.code, REFUSED.message, REFUSED.reason)
    assert error.retry_after_ms == 70
    assert slo_class == "gold"
    assert error is not REFUSED, "one of its own: a raised exception keeps its traceback"


@pytest.mark.parametrize(
    "other",
    [
        asked(wishes="other"),
        asked(prompt=49),
        asked(most=9, prompt=51),
        asked(prompt=51),
        asked(arrival_s=0.1 * CERTAIN + 1e-6),
        asked(hard_s=5.0),
    ],
    ids=["asks for other things", "shorter", "less output", "larger than any that fits", "due later", "has a deadline"],
)
def test_who_asks_for_less_is_not_refused_unless_asked(other: Asked) -> None:
    verdicts = after(asked())
    assert verdicts.on(asked(), 0.01) is not None
    if other.hard_deadline_s < math.inf:  # due sooner than one without: as hard
        assert verdicts.on(other, 0.01) is not None
        assert after(other).on(asked(), 0.01) is None
    else:
        assert verdicts.on(other, 0.01) is None


def test_a_refusal_ends_with_the_step_and_after_a_while() -> None:
    verdicts = after(asked())
    assert verdicts.on(asked(), HOLD_S) is not None
    assert verdicts.on(asked(), HOLD_S + 1e-6) is None
    assert verdicts.any
    verdicts.step_ended()
    assert not verdicts.any
    assert verdicts.on(asked(), 0.0) is None


def test_what_was_said_before_the_last_step_ended_is_not_learnt() -> None:
    verdicts = Verdicts()
    for num_known in (1, 2):
        verdicts.step_ended()
        for num_steps in range(4):
            error = RefusedError(Status.RESOURCE_EXHAUSTED, "slo: no", 100, "hopeless", 0.1, num_steps)
            verdicts.learn(asked(), "gold", error, 0.0)
            assert verdicts.any == (num_steps == num_known)
            verdicts.forget()
    verdicts.begin()
    verdicts.learn(asked(), "gold", REFUSED, 0.0)
    assert verdicts.any, "a new engine counts anew"


def test_who_is_larger_than_one_of_several_is_refused() -> None:
    verdicts = after(asked(prompt=50, most=100))
    assert verdicts.on(asked(prompt=40, most=110), 0.0) is None
    verdicts.learn(asked(prompt=20, most=30), "gold", REFUSED, 0.0)
    assert verdicts.on(asked(prompt=40, most=110), 0.0) is not None
    verdicts.learn(asked(prompt=90, most=1), "gold", REFUSED, 0.0)
    assert verdicts.on(asked(prompt=40, most=110), 0.0) is not None
    assert verdicts.on(asked(prompt=10, most=110), 0.0) is None


def test_others_wait_for_the_answer_to_the_same_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwell.serving.verdicts.WAIT_S", 1e3)
    order: list[object] = []

    async def ask(verdicts: Verdicts, wishes: str, answer: asyncio.Event) -> None:
        await verdicts.settled(wishes)
        order.append(wishes)
        with verdicts.asking(wishes):
            await answer.wait()

    async def run() -> None:
        verdicts, answers = Verdicts(), [asyncio.Event() for _ in range(5)]
        names = ("first", "first", "other", "first", "first")
        tasks = [asyncio.create_task(ask(verdicts, w, a)) for w, a in zip(names, answers, strict=True)]
        await asyncio.sleep(0)
        assert order == ["first", "other"]
        tasks[3].cancel()  # who leaves, leaves alone
        answers[0].set()
        await tasks[0]
        await asyncio.sleep(0)
        assert order == ["first", "other", "first", "first"]
        assert tasks[3].cancelled()
        for answer in answers:
            answer.set()
        await asyncio.gather(*tasks[:3], tasks[4])
        await verdicts.settled("first")  # nobody asks any more

    asyncio.run(run())


def test_nobody_waits_long_for_an_answer_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwell.serving.verdicts.WAIT_S", 0.0)

    async def run() -> None:
        verdicts = Verdicts()
        with verdicts.asking("w"):
            await asyncio.wait_for(verdicts.settled("w"), 10.0)

    asyncio.run(run())


def test_any_answer_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwell.serving.verdicts.WAIT_S", 1e3)

    async def run() -> None:
        verdicts = Verdicts()
        with verdicts.asking("w"):
            waiting = asyncio.create_task(verdicts.settled("w"))
            await asyncio.sleep(0)
            with verdicts.asking("w"):  # one that has waited before
                assert not waiting.done()
            await asyncio.wait_for(waiting, 10.0)

    asyncio.run(run())


def test_the_largest_of_its_kind_is_remembered() -> None:
    verdicts = after(asked(prompt=500))
    verdicts.learn(asked(prompt=20), "gold", REFUSED, 0.0)
    assert verdicts.on(asked(prompt=500), 0.0) is not None
    assert verdicts.on(asked(prompt=501), 0.0) is None


def test_too_late_even_alone_holds_for_whoever_has_no_more_time_left() -> None:
    verdicts = after(asked(), ALONE, at_s=0.02)
    assert verdicts.on(asked(arrival_s=0.03), 0.031) is not None
    assert verdicts.on(asked(arrival_s=0.03 + 0.1 * CERTAIN), 0.031) is None
    found = verdicts.on(asked(arrival_s=0.03), 0.031)
    assert found is not None
    assert found[0].retry_after_ms is None


def test_wishes_differ_in_all_that_matters_and_in_nothing_else() -> None:
    plain = wishes_of(GenerateCall("m", text="a", parameters={"slo_ms": 5, "seed": 1}))
    assert plain == wishes_of(GenerateCall("m", text="b", parameters={"seed": 2, "slo_ms": 5}, time_remaining_s=3.0))
    others = [
        GenerateCall("m", text="a", parameters={"slo_ms": 6}),
        GenerateCall("m", text="a", parameters={"slo_ms": 5, "surprise": 1}),
        GenerateCall("m", text="a", parameters={"slo_ms": 5}, lossless=True),
        GenerateCall("m", text="a", parameters={"slo_ms": 5}, stop=("x",)),
        GenerateCall("m", text="a", parameters={"slo_ms": True}),
        GenerateCall("m", text="a", parameters={"slo_ms": 5}, metadata={"x-stepwell-slo-ms": "5"}),
        GenerateCall("m", text="a", parameters={"slo_ms": 5}, metadata={"x-stepwell-mistake": "5"}),
    ]
    assert plain not in [wishes_of(call) for call in others]
    assert plain == wishes_of(GenerateCall("m", parameters={"slo_ms": 5}, metadata={"user-agent": "x"}))
    assert plain == wishes_of(GenerateCall("m", parameters={"slo_ms": 5}, max_tokens=3)), "its size is told apart"


def test_before_a_step_has_begun_a_refusal_holds_for_nobody_later() -> None:
    """What is planned next may drop others."""
    members, missing_s = [request((200, 20), 0.0, 0.6, 0.05) for _ in range(8)], []
    for step in (None, StepPlan(predicted_s=0.0)):
        admission = Staircase(Limits()).admission(0.0, members, [], MODEL, step)
        assert admission is not None
        drop = admission.admit(0.0, request((200, 20), 0.0, 0.6, 0.05))
        assert drop is not None
        assert drop.retry_after_s is not None
        missing_s.append(drop.missing_s)
    assert missing_s[0] == 0.0 < missing_s[1]


SIZES = st.tuples(st.integers(1, 400), st.integers(1, 60))
DUES = st.sampled_from([0.02, 0.05, 0.1, 0.3, 1.0])


def request(size: tuple[int, int], arrival_s: float, ttft_s: float, tpot_s: float, hard_s: float = math.inf) -> Request:
    slo = SLO(ttft_s=ttft_s, tpot_s=tpot_s)
    return Request("r", arrival_s, slo, POINTS, size[0], size[1], hard_deadline_s=hard_s)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(SIZES, DUES, DUES), max_size=12),
    SIZES,
    st.tuples(DUES, DUES),
    st.tuples(st.integers(0, 200), st.integers(0, 20)),
    st.tuples(*[st.integers(0, 40)] * 4).map(sorted),
    st.sampled_from([math.inf, 0.2, 1.0]),
    st.sampled_from([None, 0.0, 0.03]),
)
def test_no_call_is_refused_that_admission_would_take(members, size, dues, more, times, hard_s, step_s) -> None:
    """``more``: by how many tokens the second call is larger; ``times``: of both calls, arrival and decision,
    milliseconds; ``step_s``: of the step that runs."""
    step = None if step_s is None else StepPlan(predicted_s=step_s)
    admission = Staircase(Limits()).admission(0.0, [request(s, 0.0, *d) for s, *d in members], [], MODEL, step)
    assert admission is not None
    arrival_s, at_s, other_s, now = (ms / 1e3 for ms in times)
    drop = admission.admit(at_s, request(size, arrival_s, *dues, arrival_s + hard_s))
    assume(drop is not None)
    code = Status.DEADLINE_EXCEEDED if drop.retry_after_s is None else Status.RESOURCE_EXHAUSTED
    retry_ms = None if drop.retry_after_s is None else math.ceil(drop.retry_after_s * 1e3)
    error = RefusedError(code, "no", retry_ms, "hopeless", drop.missing_s)
    verdicts = after(Asked("w", 1000, 1000, 0.0, math.inf), error)  # so that size does not matter
    verdicts.learn(Asked("w", *size, arrival_s, arrival_s + hard_s), "gold", error, at_s)
    larger = size[0] + more[0], size[1] + more[1]
    assume(verdicts.on(Asked("w", *larger, other_s, other_s + hard_s), now) is not None)
    assert admission.admit(now, request(larger, other_s, *dues, other_s + hard_s)) is not None


@pytest.mark.parametrize("prompt", [[1] * 100, "x" * 100], ids=["ids", "text"])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_was_just_refused_is_not_asked_again(
    make_server: Callable[..., Any], wire: Any, monkeypatch: pytest.MonkeyPatch, prompt, streamed
) -> None:
    monkeypatch.setattr("stepwell.serving.verdicts.HOLD_S", math.inf)
    server = make_server(model={"policy": "staircase"})
    engine, submitted = server.engine(), []
    submit = engine.submit

    def submit_noting(job: Any, sink: Any) -> None:
        submitted.append(job)
        try:
            submit(job, sink)
        except RefusedError as error:
            error.missing_s = 1e3  # however slow the machine is today
            raise

    engine.submit = submit_noting
    call = server.oip.ModelStreamInfer if streamed else server.oip.ModelInfer

    def refusal(seed: int, **changed: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
        request = wire.infer(prompt, **{"max_tokens": 50, "ttft_ms": 1e-3, "tpot_ms": 1e-3, "seed": seed, **changed})
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter([request]), metadata=[("triton_grpc_error", "true")]) if streamed else [call(request)])
        return refused.value.code(), refused.value.details(), dict(refused.value.trailing_metadata())

    first, again, other = refusal(1), refusal(1), refusal(2)
    assert len(submitted) == 1
    assert first[:2] == again[:2] == other[:2]
    assert again[2]["x-stepwell-reason"] == other[2]["x-stepwell-reason"] == first[2]["x-stepwell-reason"]
    assert server.sample("slo_requests_total", slo_class="default", outcome="shed") == 3
    assert server.sample("shed_total", reason="hopeless") == 3
    served = server.server.plane.models["tiny"]
    assert served.statistics.fail.count == 3
    assert len(served.hosted.host._toll._times) == 3, "whoever is turned away takes time, too"
    refusal(1, max_tokens=49)
    assert len(submitted) == 2, "it asks for less"
    refusal(1, max_tokens=49)
    assert len(submitted) == 2
    for nonsense in ({"max_tokens": 500}, {"typo": 1}, {"temperature": -1.0}):
        assert refusal(1, **nonsense)[0] is grpc.StatusCode.INVALID_ARGUMENT
    refusal(1, ttft_ms=2e-3)
    assert len(submitted) == 3, "it asks for something else"
    server.check_serves()
    wire.eventually(lambda: not served.verdicts.any)
    refusal(1)
    assert len(submitted) == 5
