"""A real Prometheus scrapes a real server: what it counts is what the clients were told."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from stepwell.serving import Client

OUTCOMES = {"met", "missed", "shed", "expired", "cancelled", "failed"}
CLASSES = ("default", "relaxed", "normal", "tight")
CANCELLED = ("CANCELLED", "by the client itself")
TOLD = [  # status, in its text, outcome and reason that the client concludes
    ("RESOURCE_EXHAUSTED", "wait already", "shed", "queue_full"),
    ("RESOURCE_EXHAUSTED", "slo: ", "shed", "hopeless"),
    ("DEADLINE_EXCEEDED", "slo: ", "shed", "hopeless"),
    ("DEADLINE_EXCEEDED", "timeout: ", "expired", "queue_timeout"),
    ("DEADLINE_EXCEEDED", "deadline: ", "expired", "expired"),
    ("UNAVAILABLE", "draining", "shed", "draining"),
    ("INTERNAL", "failed", "failed", ""),
    (*CANCELLED, "cancelled", ""),
]
POISON = [200, 201, 202]
"""Token ids of a prompt that no batch survives."""
LATE_MS = 300.0
"""Asked of requests that are made to wait longer."""

Labels = tuple[str, ...]


@pytest.fixture
def running(make_server: Any) -> Any:
    """A server whose queue holds six, and whose runner fails over one certain prompt."""
    running = make_server(model={"max_waiting": 6})
    engine = running.engine()
    engine._runner = PoisonedRunner(engine._runner)
    return running


class PoisonedRunner:
    """The real one, except for the poisoned prompt."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner

    def run(self, steps: Sequence[Any]) -> Mapping[str, Any]:
        if any(list(step.token_ids) == POISON for step in steps):
            raise RuntimeError("poisoned")
        return self.runner.run(steps)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Answer:
    """How a request ended, as its client was told."""

    slo_class: str
    outcome: str
    reason: str = ""
    """Why it was refused or dropped."""
    asked: bool = False
    """It stated a latency, itself or by its class."""
    num_streamed: int = 0
    """Tokens that were received although it was not served."""
    point: str = ""
    """Operating point of those served; so are the rest."""
    quality: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    @property
    def served(self) -> bool:
        return self.outcome in ("met", "missed")


@dataclass
class Load:
    """Sends requests and keeps what was answered."""

    running: Any
    wire: Any
    answers: list[Answer] = field(default_factory=list)
    _open: list[tuple[Any, str, bool]] = field(default_factory=list)

    def send(self, prompt: Any, slo_class: str = "", **parameters: Any) -> grpc.Future:
        """Over the Open Inference Protocol; :meth:`collect` waits for the answer."""
        if slo_class:
            parameters["slo_class"] = slo_class
        call = self.running.oip.ModelInfer.future(self.wire.infer(prompt, ignore_eos=True, **parameters), timeout=60)
        asked = slo_class not in ("", "default") or not parameters.keys().isdisjoint(("slo_ms", "ttft_ms"))
        self._open.append((call, slo_class or "default", asked))
        return call

    def collect(self) -> None:
        """Wait for everything that was sent."""
        for call, slo_class, asked in self._open:
            try:
                response = call.result()
            except grpc.FutureCancelledError:
                self.told(slo_class, *CANCELLED)
            except grpc.RpcError as error:
                self.told(slo_class, error.code().name, error.details())
            else:
                said = response.parameters
                self.answers.append(
                    Answer(
                        slo_class,
                        "met" if said["slo_met"].bool_param else "missed",
                        asked=asked,
                        point=said["operating_point"].string_param,
                        quality=said["quality"].double_param,
                        prompt_tokens=said["prompt_tokens"].int64_param,
                        generated_tokens=said["generated_tokens"].int64_param,
                    )
                )
        self._open.clear()

    def told(self, slo_class: str, status: str, text: str, num_streamed: int = 0) -> None:
        """An error, as a client reads it."""
        (found,) = [told[2:] for told in TOLD if told[0] == status and told[1] in text]
        self.answers.append(Answer(slo_class, *found, num_streamed=num_streamed))

    def stream(self, slo_class: str, num_tokens: int) -> None:
        """Over Stepwell's own API, to the end."""
        with Client(self.running.address) as client:
            said = client.complete("tiny", "stream", max_tokens=num_tokens, ignore_eos=True, slo_class=slo_class).report
        asked, served = slo_class != "default", (said.prompt_tokens, said.generated_tokens)
        self.answers.append(Answer(slo_class, said.outcome, "", asked, 0, said.operating_point, said.quality, *served))

    def count(self, key: Callable[[Answer], Labels], of: Callable[[Answer], bool]) -> dict[Labels, float]:
        return dict(Counter(key(answer) for answer in self.answers if of(answer)))


def ordinary(load: Load) -> None:
    """Both APIs, all classes, few enough at once for the queue."""
    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(load.stream, slo_class, 3) for slo_class in ("default", "relaxed")]
        for i in range(12):
            load.send("ordinary" * (1 + i % 3), CLASSES[i % 4], max_tokens=1 + i % 5, operating_point=f"depth:{i % 3}")
            if i % 3 == 2:
                load.collect()
        for stream in streams:
            stream.result()
    load.send("asks for the impossible", "tight", slo_ms=0.001, max_tokens=50)
    load.collect()


def crowd(load: Load, prometheus: Any) -> None:
    """While one step lasts long: some wait in vain, one gives up, more come than may wait."""
    running, wire, started_s = load.running, load.wire, time.monotonic()
    running.gate.close()
    load.send("missed", "normal", ttft_ms=LATE_MS, max_tokens=1)
    wire.eventually(lambda: running.engine().num_running == 1)
    load.send("expires", "normal", slo_ms=LATE_MS, max_tokens=1)
    load.send("starts too late", timeout=int(LATE_MS * 1e3), max_tokens=1)
    gives_up = load.send("gives up", "relaxed", max_tokens=1)
    wire.eventually(lambda: wire.admitted(running) == 4)
    gives_up.cancel()
    wire.eventually(lambda: wire.noticed_cancel(running))
    many = [load.send("one of too many", max_tokens=2) for _ in range(6)]
    wire.eventually(lambda: wire.admitted(running) + sum(call.done() for call in many) == 10)
    prometheus.wait_for("sum(stepwell_requests_waiting)", wire.admitted(running) - 1)
    assert prometheus.value("sum(stepwell_requests_running)") == 1
    assert 0 < prometheus.value("max(stepwell_kv_cache_usage_ratio)") < 1  # type: ignore[operator]
    time.sleep(max(0.0, started_s + 1.2 * LATE_MS / 1e3 - time.monotonic()))
    running.gate.open()
    load.collect()


def poison(load: Load) -> None:
    """One request breaks the batch it shares with others."""
    running, wire = load.running, load.wire
    running.gate.close()
    load.send("innocent", max_tokens=3)
    wire.eventually(lambda: running.engine().num_running == 1)
    load.send(POISON, max_tokens=3)
    load.send("bystander", max_tokens=3)
    wire.eventually(lambda: wire.admitted(running) == 3)
    running.gate.open()
    load.collect()


def leave_in_mid_stream(load: Load) -> None:
    """A client that has its first token."""
    load.running.gate.allow(1)
    with Client(load.running.address) as client:
        pieces = client.generate("tiny", "leaves", max_tokens=100, ignore_eos=True)
        first = next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        load.told("default", *CANCELLED, num_streamed=len(first.token_ids))
        load.wire.eventually(lambda: load.wire.noticed_cancel(load.running))
    load.running.gate.open()


def come_too_late(load: Load) -> None:
    """The server takes no more."""
    load.running.server.plane.drain()
    load.send("after the end")
    load.send("after the end", slo_class="tight")
    load.collect()


def test_what_it_counts_is_what_the_clients_were_told(running: Any, scrape_with_prometheus: Any, wire: Any) -> None:
    load, prometheus = Load(running, wire), scrape_with_prometheus(running)
    ordinary(load)
    crowd(load, prometheus)
    poison(load)
    leave_in_mid_stream(load)
    come_too_late(load)
    wire.eventually(lambda: not running.engine().has_work)
    prometheus.scrape()

    query, value = prometheus.query, prometheus.value
    assert {answer.outcome for answer in load.answers} == OUTCOMES, "each was provoked"
    assert value("sum(stepwell_slo_requests_total)") == len(load.answers)
    ended = load.count(lambda a: (a.outcome, a.slo_class), of=lambda a: True)
    assert query("sum by (slo_class, outcome) (stepwell_slo_requests_total)") == ended
    reasons = load.count(lambda a: (a.reason,), of=lambda a: a.reason != "")
    assert query("sum by (reason) (stepwell_shed_total)") == reasons
    if running.engine()._inbox._admission is not None:  # the policy refuses at the door
        assert ("hopeless",) in reasons
    points = load.count(lambda a: (a.point,), of=lambda a: a.served)
    assert query("sum by (operating_point) (stepwell_served_total)") == points

    by_class = load.count(lambda a: (a.slo_class,), of=lambda a: a.served)
    for histogram in ("served_quality", "request_seconds", "queue_seconds", "time_to_first_token_seconds"):
        assert query(f"sum by (slo_class) (stepwell_{histogram}_count)") == by_class, histogram
    several = load.count(lambda a: (a.slo_class,), of=lambda a: a.served and a.generated_tokens > 1)
    assert query("sum by (slo_class) (stepwell_time_per_output_token_seconds_count)") == several
    assert value("sum(stepwell_served_quality_sum)") == pytest.approx(sum(a.quality for a in load.answers))
    check_ratios(load, prometheus)
    check_tokens(load, prometheus)
    check_steps(running, prometheus)
    check_gauges(prometheus)
    check_scrape(running, prometheus)


def check_ratios(load: Load, prometheus: Any) -> None:
    """Latency over SLO of all that asked for one and were served; above 1 if it is late as a whole."""
    asked = load.count(lambda a: (a.slo_class,), of=lambda a: a.served and a.asked)
    assert prometheus.query("sum by (slo_class) (stepwell_slo_ratio_count)") == asked
    late = prometheus.value('sum(stepwell_slo_ratio_count) - sum(stepwell_slo_ratio_bucket{le="1.0"})')
    missed = sum(answer.outcome == "missed" for answer in load.answers)
    assert late is not None
    assert 1 <= late <= missed, "a token may be late although all of them, taken together, are not"


def check_tokens(load: Load, prometheus: Any) -> None:
    """Those of the answers; besides, those of clients that left, who do not see what was on its way to them."""
    left = [answer for answer in load.answers if answer.num_streamed]
    assert left
    seen = sum(answer.generated_tokens + answer.num_streamed for answer in load.answers)
    counted = prometheus.query("sum by (kind) (stepwell_tokens_total)")
    assert seen <= counted[("generated",)] <= seen + len(left)
    prompts = sum(answer.prompt_tokens for answer in load.answers) + len("leaves") * len(left)
    assert counted[("prompt",)] + counted.get(("cached",), 0) == prompts


def check_steps(running: Any, prometheus: Any) -> None:
    """Every step is timed; with a cost model each was predicted, save perhaps the one that was run in parts."""
    steps = prometheus.value("sum(stepwell_step_seconds_count)")
    predicted = prometheus.value("sum(stepwell_step_prediction_ratio_count)")
    assert steps
    if running.engine()._cost_model is None:
        assert predicted is None
    else:
        assert predicted is not None
        assert steps - 1 <= predicted <= steps


def check_gauges(prometheus: Any) -> None:
    """One series a model, all at rest."""
    for gauge in ("requests_waiting", "requests_running", "kv_cache_usage_ratio", "backlog_seconds"):
        assert prometheus.query(f"sum by (model) (stepwell_{gauge})") == {("tiny",): 0.0}, gauge


def check_scrape(running: Any, prometheus: Any) -> None:
    """It took in everything the server has to say."""
    (target,) = prometheus.api("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    names = prometheus.api("label/__name__/values")
    families = {family.name for family in running.server.metrics.registry.collect() if family.samples}
    assert {family for family in families if not any(name.startswith(family) for name in names)} == set()


def test_promtool_has_no_complaint(running: Any, complaints: Any, wire: Any) -> None:
    ordinary(Load(running, wire))
    assert complaints(running) == ""
