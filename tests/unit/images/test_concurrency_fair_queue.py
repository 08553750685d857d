"""The order of callers that want the same resource."""

from __future__ import annotations

import asyncio

from services.images.concurrency.budget import READINGS
from services.images.concurrency.fair_queue import FairQueue
from services.images.documents import parser_program
from services.kit import tracing
from tests.spans import attribute, recorded
from tests.support import eventually_async


async def test_callers_take_turns() -> None:
    """A caller with a hundred requests does not delay a caller with one. Each caller's requests keep their order, and
    cancelled ones are skipped.
    """
    queue, done = FairQueue(), list[str]()
    first = asyncio.Event()

    async def work(who: str, what: str) -> None:
        async with queue.turn(who):
            done.append(what)
            await (first.wait() if what == "first" else asyncio.sleep(0))

    tasks = [
        asyncio.ensure_future(work(*each))
        for each in (
            ("a", "first"),
            ("a", "a1"),
            ("a", "a2"),
            ("a", "gives up"),
            ("a", "a3"),
            ("b", "b1"),
            ("c", "gives up"),
            ("b", "b2"),
        )
    ]
    await asyncio.sleep(0)
    for task in (tasks[3], tasks[6]):
        task.cancel()
    first.set()
    await asyncio.wait(tasks)
    assert done == ["first", "a1", "b1", "a2", "b2", "a3"]
    async with queue.turn("d"):  # nobody has it any more
        pass


async def test_a_turn_that_comes_too_late_is_the_next_ones() -> None:
    """A caller that is cancelled in the moment in which it is given the turn passes it on."""
    queue, ran = FairQueue(), asyncio.Event()

    async def wait(then: asyncio.Event) -> None:
        async with queue.turn("a"):
            then.set()

    async with queue.turn("a"):
        late = asyncio.ensure_future(wait(asyncio.Event()))
        after = asyncio.ensure_future(wait(ran))
        await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait((late, after))
    assert late.cancelled()
    assert ran.is_set()


async def test_who_waits_has_a_span_with_who_is_waited_for() -> None:
    """Whoever comes first waits for nobody."""
    queue, go = FairQueue(), asyncio.Event()

    async def reads(name: str) -> None:
        with tracing.span(name):
            async with queue.turn(name, READINGS):
                await go.wait()

    with recorded() as spans:
        tasks = [asyncio.ensure_future(reads(name)) for name in ("first", "second")]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*tasks)
        waited = spans.one("wait.budget")
        assert spans.parent(waited).name == "second"
        assert [each.name for each in spans.linked(waited)] == ["first"]
        assert attribute(waited, "splitd.wait.for") == "the reading of another large document"


async def test_documents_of_each_client_are_read_in_turn() -> None:
    """A hundred large documents of one client do not come before another client's single one."""
    who, read = "stranger", list[bytes]()

    async def reads(document: bytes) -> None:
        read.append(await parser_program.read(document.ljust(parser_program.LARGE), bytes.strip))

    with parser_program.available(lambda: who):
        tasks = [asyncio.ensure_future(reads(b"stranger's %d" % n)) for n in range(5)]
        await asyncio.sleep(0)
        who = "other"
        tasks.append(asyncio.ensure_future(reads(b"other's")))

        async def all_done() -> bool:
            return all(task.done() for task in tasks)

        await eventually_async(all_done, "documents are not read")
    assert read.index(b"other's") <= 2
    assert [each for each in read if each != b"other's"] == [b"stranger's %d" % n for n in range(5)]
