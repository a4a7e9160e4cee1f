"""From the engine's thread to the event loop: nothing lost, order kept, the end never apart from the last token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.serving.engine.events import FinishEvent, Outcome, Report, TokenEvent
from stepwell.serving.handoff import Chunk, Hub, Mailbox

REPORT = Report("depth:0", 1.0, None, None, 0.0, 1.0, 1.0, True, False, 1.0, None, 1, 1, 0, {"depth:0": 1})


def token(i: int) -> TokenEvent:
    return TokenEvent("r", (i,), f"<{i}>", (float(i),))


def finish() -> FinishEvent:
    return FinishEvent("r", Outcome.MET, "stop", None, REPORT)


async def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0)
    await asyncio.sleep(0)


async def read_all(mailbox: Mailbox) -> list[Chunk]:
    chunks = []
    while not chunks or chunks[-1].finish is None:
        chunks.append(await mailbox.next())
    return chunks


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.booleans())
def test_every_token_arrives_once_in_order_and_the_last_comes_with_the_end(steps: list[int], whole: bool) -> None:
    """``steps``: how many tokens the request gets in each engine step."""

    async def main() -> None:
        hub = Hub(asyncio.get_running_loop())
        mailbox = Mailbox(hub, whole=whole)

        def engine() -> None:
            count = 0
            for number, tokens in enumerate(steps):
                for _ in range(tokens):
                    mailbox.sink(token(count))
                    count += 1
                if number == len(steps) - 1:
                    mailbox.sink(finish())
                    hub.request_over(finish(), lambda end: end)
                hub.step_committed()

        reading = asyncio.create_task(read_all(mailbox))
        await in_thread(engine)
        chunks = await reading
        total = sum(steps)
        assert [i for chunk in chunks for i in chunk.token_ids] == list(range(total))
        assert "".join(chunk.text for chunk in chunks) == "".join(f"<{i}>" for i in range(total))
        assert [v for chunk in chunks for v in chunk.logprobs or ()] == [float(i) for i in range(total)]
        assert [chunk.finish is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        if steps[-1] or whole:
            assert chunks[-1].token_ids or not total
        if whole:
            assert len(chunks) == 1

    asyncio.run(main())


def test_a_token_does_not_arrive_before_its_step_is_committed() -> None:
    async def main() -> None:
        hub = Hub(asyncio.get_running_loop())
        mailbox = Mailbox(hub, whole=False)
        reading = asyncio.create_task(mailbox.next())
        await in_thread(lambda: mailbox.sink(token(1)))
        assert not reading.done()
        await in_thread(hub.step_committed)
        assert (await reading).token_ids == (1,)

    asyncio.run(main())


def test_the_end_arrives_when_it_is_counted_whether_or_not_there_is_a_step() -> None:
    async def main() -> None:
        hub = Hub(asyncio.get_running_loop())
        mailbox = Mailbox(hub, whole=False)
        reading = asyncio.create_task(mailbox.next())
        await in_thread(lambda: mailbox.sink(finish()))
        assert not reading.done()
        await in_thread(lambda: hub.request_over(finish(), lambda end: end))
        chunk = await reading
        assert chunk.finish is not None
        assert (chunk.token_ids, chunk.logprobs) == ((), None)

    asyncio.run(main())


def test_one_wake_up_a_step_for_all_its_requests() -> None:
    async def main() -> None:
        class CountingLoop:
            calls = 0

            def call_soon_threadsafe(self, *args: object) -> None:
                self.calls += 1

        loop = CountingLoop()
        hub = Hub(loop)  # type: ignore[arg-type]
        mailboxes = [Mailbox(hub, whole=False) for _ in range(8)]
        for mailbox in mailboxes:
            mailbox.sink(token(0))
        hub.step_committed()
        hub.step_committed()
        assert loop.calls == 1

    asyncio.run(main())


@pytest.mark.parametrize("whole", [False, True])
def test_the_engine_survives_a_loop_that_is_closed(whole: bool) -> None:
    loop = asyncio.new_event_loop()
    hub = Hub(loop)
    mailbox = Mailbox(hub, whole=whole)
    loop.close()
    mailbox.sink(token(0))
    hub.step_committed()
    mailbox.sink(finish())
    hub.request_over(finish(), lambda end: end)
