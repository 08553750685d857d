"""What a transfer waits for: which wait is told, in which words, and to whom."""

from __future__ import annotations

import asyncio
import contextlib

from services.images import waits
from services.images.concurrency.budget import Budget
from services.images.concurrency.keyed_locks import KeyedLocks
from services.images.distribution.progress import reporting_waits
from services.images.transfer import Progress
from services.images.waits import AFTER, LINGERS, Board, Wait
from tests.spans import attribute, recorded
from tests.support import eventually_async


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(board: Board, after: float = AFTER) -> str:
    """The words of what is told; "" if nothing is."""
    wait = board.told(after)
    return "" if wait is None else wait.words


# ---------------------------------------------------------------------------------------------- hosts


def test_the_host_that_has_been_silent_longest() -> None:
    """The time counts from the last bytes. A host with several requests is not silent as long as one of them gets
    bytes; a host without requests is not silent.
    """
    clock = Clock()
    board = Board(clock)
    board.asked("a")
    clock.now += 2
    board.asked("a", head=False)
    board.asked("b")
    clock.now += 3
    assert told(board) == "a has sent nothing for 5 s"
    board.over("a", came=True, head=False)
    assert told(board) == "b does not answer (tried for 3 s)"
    board.heard("b")
    assert told(board) == ""
    clock.now += 1
    assert told(board).startswith(("a", "b"))
    board.over("a", came=True)
    board.over("b", came=True)
    clock.now += 100
    assert board.told(0.0) is None
    board.asked("a")
    assert board.told(0.0) == Wait(waits.HOST, "a does not answer (tried for 1 s)", "a")


def test_attempts_in_vain_are_one_silence() -> None:
    """The pauses between the attempts count too. Once another host is asked, the failed one is not reported any
    more.
    """
    clock = Clock()
    board = Board(clock)
    for attempt in range(3):
        board.asked("a", then="b")
        clock.now += 30
        board.over("a", came=False)
        clock.now += LINGERS / 2
        assert told(board) == f"a does not answer (tried for {(attempt + 1) * (30 + LINGERS / 2):.0f} s), then b"
    board.asked("b")
    assert told(board) == ""
    board.over("b", came=True)
    clock.now += LINGERS
    assert told(board) == ""


# ---------------------------------------------------------------------------------------------- all causes


def test_what_is_outside_of_the_node_comes_first() -> None:
    """A pause before a token, a token before the server that it comes from, and these before the node's own queues. Each
    is told after half a second.
    """
    clock = Clock()
    board = Board(clock)
    with board.noted(Wait(waits.BUDGET, "layer 3 waits for a worker")):
        clock.now += AFTER
        assert told(board) == "layer 3 waits for a worker"
        board.asked("auth.test")
        with board.noted(Wait(waits.TOKEN, "getting a token from auth.test", "auth.test")):
            assert told(board) == "layer 3 waits for a worker"
            clock.now += AFTER
            assert told(board) == "getting a token from auth.test"
            with board.noted(Wait(waits.PAUSE, "waiting for r.test: asked to wait 3 s (429)", "r.test", lasts=3.0)):
                assert told(board) == "getting a token from auth.test"
                clock.now += AFTER
                assert board.told() == Wait(
                    waits.PAUSE, "waiting for r.test: asked to wait 3 s (429)", "r.test", AFTER, 3.0
                )
        board.over("auth.test", came=True)
        clock.now += AFTER
        assert told(board) == "layer 3 waits for a worker"
    assert told(board) == ""


def test_a_queue_is_no_news_while_something_moves() -> None:
    """A layer waits for its turn in every large pull. It is told only if no bytes come and no layer is unpacked."""
    clock = Clock()
    board = Board(clock)
    with board.noted(Wait(waits.BUDGET, "layer 3 waits for a worker")):
        board.working("layer 1", on=True)
        clock.now += 10
        assert told(board) == ""
        board.working("layer 1", on=False)
        clock.now += AFTER
        assert told(board) == "layer 3 waits for a worker"
        board.heard("r.test")
        assert told(board) == ""


def test_work_outside_of_a_transfer_notes_nothing() -> None:
    """There is no board, so nothing is kept; the span is made all the same."""
    with recorded() as spans:
        with waits.asking("r.test"), waits.waiting(waits.PAUSE, "waiting for r.test", host="r.test"):
            waits.heard("r.test")
        assert waits.board() is None
        span = spans.one("wait.pause")
    assert attribute(span, "splitd.wait.for") == "waiting for r.test"
    assert attribute(span, "server.address") == "r.test"


# ---------------------------------------------------------------------------------------------- events


async def test_it_is_told_as_long_as_it_lasts() -> None:
    """Afterwards the last status is sent again, since clients show a status until the next one. ctr shows it with the
    next event that has a name.
    """
    events: list[Progress] = []
    async with reporting_waits(Board(), events.append, after=0.0, interval=0.002) as report:
        report(Progress("Pulling from a"))
        report(Progress("waiting", "layer-sha256:aa"))
        with waits.noted(waits.TOKEN, "getting a token from auth.test", "auth.test"):
            await eventually_async(lambda: asyncio.sleep(0, len(events) > 3), "nothing is told")
        await eventually_async(lambda: asyncio.sleep(0, len(events) > 5), "it is told for ever")
    layer = Progress("waiting", "layer-sha256:aa")
    assert events == [
        Progress("Pulling from a"),
        layer,
        Progress("getting a token from auth.test", parents=("auth.test", "token")),
        layer,
        Progress("Pulling from a"),
        layer,
    ]


async def test_a_wait_that_is_over_is_not_told_along_with_news() -> None:
    """The status is told again before the next event, however soon that is."""
    events: list[Progress] = []
    async with reporting_waits(Board(), events.append, after=0.0, interval=0.002) as report:
        report(Progress("Pulling from a"))
        with waits.noted(waits.PAUSE, "waiting for a", "a"):
            await eventually_async(lambda: asyncio.sleep(0, len(events) > 1), "nothing is told")
        report(Progress("waiting", "layer-sha256:aa"))
    assert [each.event for each in events] == ["Pulling from a", "waiting for a", "Pulling from a"] + ["waiting"] * 2


async def test_tasks_of_a_transfer_share_its_board() -> None:
    """And two transfers have two."""
    boards, both = (Board(), Board()), asyncio.Barrier(2)

    async def work(host: str) -> None:
        with waits.asking(host):
            await both.wait()
            assert [told(board, 0.0) for board in boards] == [
                "a does not answer (tried for 1 s)",
                "b does not answer (tried for 1 s)",
            ]
            await both.wait()

    async def transfer(board: Board, host: str) -> None:
        async with reporting_waits(board, lambda _: None):
            await asyncio.gather(work(host))

    await asyncio.gather(transfer(boards[0], "a"), transfer(boards[1], "b"))


# ---------------------------------------------------------------------------------------------- the node's own queues


async def test_who_waits_for_a_place_or_another_pull_is_told() -> None:
    """With the layer's number, of which the lowest is 1."""
    board, budget, locks = Board(), Budget(workers=1), KeyedLocks("the fetch of the same blob")
    said = []

    async def held() -> None:
        async with budget.unpacking(0), locks.held("blob"):
            for wanted in (budget.unpacking(2), locks.held("blob")):
                with board.active():
                    waiting = asyncio.ensure_future(entered(wanted))
                await eventually_async(lambda: asyncio.sleep(0, told(board, 0.0)), "nothing is told")
                said.append(told(board, 0.0))
                waiting.cancel()
                await asyncio.wait((waiting,))

    async def entered(wanted: contextlib.AbstractAsyncContextManager[None]) -> None:
        async with wanted:
            pass

    await held()
    assert said == ["layer 3 waits for a worker", "waiting for the fetch of the same blob by another pull"]
    assert told(board, 0.0) == ""
