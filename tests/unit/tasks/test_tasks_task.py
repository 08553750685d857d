"""A task's life and its races, without any shim."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.kit import errors
from services.tasks.service import Service
from services.tasks.store import Exit
from services.tasks.task import TRANSITIONS, Event, IllegalTransitionError, Life, Task
from tests.unit.tasks.tasks_fakes import ADDRESS, FakeConnection, connections, service, task


@pytest.fixture
async def close() -> AsyncIterator[list[Task]]:
    """Tasks that are closed at the end."""
    made: list[Task] = []
    yield made
    for each in made:
        await each._service.background.cancel()
        await each.close()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a shim."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as made:
        try:
            yield made
        finally:
            made.kill()


async def quiet(around: Service) -> None:
    """Wait until all background work has ended."""
    await asyncio.wait_for(around.background.wait(), 10)


def test_every_state_is_reached_and_none_is_left_out() -> None:
    """Each state can be reached from NEW; GONE and LEFT are the last ones."""
    assert set(TRANSITIONS) == set(Life)
    reached, waiting = {Life.NEW}, [Life.NEW]
    while waiting:
        new = set(TRANSITIONS[waiting.pop()].values()) - reached
        reached |= new
        waiting += new
    assert reached == set(Life)
    assert {life for life in Life if set(TRANSITIONS[life].values()) <= {life}} == {Life.GONE, Life.LEFT}
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


@pytest.mark.parametrize("life", Life)
@pytest.mark.parametrize("event", Event)
async def test_a_transition_that_is_not_in_the_table_is_a_defect(
    place: Path, life: Life, event: Event, close: list[Task]
) -> None:
    """The state stays what it was."""
    one = task(service(place))
    close.append(one)
    one.life = life
    if event in TRANSITIONS[life]:
        one._move(event)
        assert one.life is TRANSITIONS[life][event]
    else:
        with pytest.raises(IllegalTransitionError, match=f"task ns/c: {event.name} in the state {life.name}"):
            one._move(event)
        assert one.life is life


async def test_a_shim_is_followed_again_whatever_fails_at_first(
    place: Path, caplog: pytest.LogCaptureFixture, close: list[Task]
) -> None:
    """Its connection was lost, and there are no file descriptors for a moment: without another try its death would not
    be noticed.
    """
    failing = [OSError(errno.EMFILE, "too many open files"), ZeroDivisionError("unthought of")]
    unsaid: list[Exception] = [OSError(errno.EMFILE, "too many open files")]

    async def connecting() -> None:
        if failing:
            raise failing.pop()

    def pid() -> int:
        if unsaid:
            raise unsaid.pop()
        return os.getpid()

    one = task(service(place, connections(connecting, pid)))
    close.append(one)
    dead: list[Task] = []
    one.follow(dead.append)
    assert one.life is Life.LOST
    assert await one.until(lambda: one.life is Life.CONNECTED, 10)
    await quiet(one._service)
    assert one.has_pid
    assert one.shim_pid == os.getpid()
    assert not failing
    assert dead == []
    assert "connecting to the shim of" in caplog.text
    assert "for its pid" in caplog.text


async def test_a_shim_that_dies_while_it_is_connected_to_is_noticed(
    place: Path, process: subprocess.Popen[bytes], close: list[Task]
) -> None:
    """A process that is dying accepts connections: that one is dropped."""
    made = connections(pid=lambda: process.pid)
    one = task(service(place, made))
    close.append(one)
    dead: list[Task] = []
    await one.connect(ADDRESS, 1.0)
    one.follow(dead.append)
    await quiet(one._service)
    assert one.has_pid

    async def connecting() -> None:
        process.kill()
        await asyncio.wait_for(one.died.wait(), 10)

    made.connecting = staticmethod(connecting)
    await made.opened[0].close()
    await quiet(one._service)
    assert dead == [one]
    assert one.life is Life.LOST
    assert [connection.is_closed for connection in made.opened] == [True, True]


async def test_a_shim_that_dies_is_found_dead_once(
    place: Path, process: subprocess.Popen[bytes], close: list[Task]
) -> None:
    """Its pidfd and its connection report it in the same moment."""
    made = connections(pid=lambda: process.pid)
    one = task(service(place, made))
    close.append(one)
    dead: list[Task] = []
    await one.connect(ADDRESS, 1.0)
    one.follow(dead.append)
    await quiet(one._service)
    one._has_died()
    await made.opened[0].close()
    await quiet(one._service)
    assert dead == [one]
    assert len(made.opened) == 1


async def test_a_process_that_lives_is_no_dead_shim_though_nothing_tells_its_address(
    place: Path, process: subprocess.Popen[bytes], close: list[Task]
) -> None:
    """The bundle was removed, and the address had not been noted: the task waits for the end of the process."""
    made = connections(pid=lambda: process.pid)
    one = task(service(place, made))
    close.append(one)
    dead: list[Task] = []
    await one.connect(ADDRESS, 1.0)
    one.follow(dead.append)
    await quiet(one._service)
    one.address = lambda: None  # type: ignore[method-assign]
    await made.opened[0].close()
    assert await one.until(lambda: one.life is Life.LOST, 10)
    for _ in range(5):
        await asyncio.sleep(0)
    assert dead == []
    process.kill()
    await quiet(one._service)
    assert dead == [one]


async def test_a_connection_to_a_task_that_is_deleted_meanwhile_is_closed(place: Path, close: list[Task]) -> None:
    """The shim of a group lives on, and no other code would close it."""
    going_on = asyncio.Event()
    made = connections()
    one = task(service(place, made))
    close.append(one)
    await one.connect(ADDRESS, 1.0)
    one.follow(lambda _: None)
    await quiet(one._service)
    made.connecting = staticmethod(going_on.wait)  # type: ignore[assignment]
    await made.opened[0].close()
    await asyncio.sleep(0)
    assert one.life is Life.LOST
    one.ends()
    one.forgotten()
    await one.close()
    going_on.set()
    await quiet(one._service)
    assert [connection.is_closed for connection in made.opened] == [True, True]
    assert one.connection is None
    with pytest.raises(errors.NotFound, match="^task c not found$"):
        await one.usable(0.0)


async def test_a_pid_that_a_former_shim_told_is_not_taken(place: Path, close: list[Task]) -> None:
    """The connection has ended before the answer is read."""
    made = connections(pid=os.getpid)
    one = task(service(place, made))
    close.append(one)
    await one.connect(ADDRESS, 1.0)
    connection = one.connection
    assert isinstance(connection, FakeConnection)
    asking = asyncio.create_task(one._identify(connection))
    await asyncio.sleep(0)
    one.connection = None
    await asking
    assert not one.has_pid
    await connection.close()


async def test_an_exit_that_is_learnt_late_is_not_noted_for_the_next_of_this_name(
    place: Path, close: list[Task]
) -> None:
    """Otherwise the next task's exit would count as seen, and not be reported after a start."""
    exits: list[int] = []
    around = service(place, on_exit=lambda _namespace, _name, how: exits.append(how.status))
    made, one = around.connection, task(around)
    assert issubclass(made, FakeConnection)
    close.append(one)
    await one.connect(ADDRESS, 1.0)
    one.follow(lambda _: None)
    waiting = one.watch(one.init)
    await asyncio.sleep(0)
    made.opened[0].exits.set_result(Exit(3, 1))
    one.ends()
    one.forgotten()  # before the waiter gets its turn
    assert (await waiting).status == 3
    assert exits == []
    assert not around.notes.exit_was_seen(one.bundle)
    one = task(service(place / "b", on_exit=lambda _namespace, _name, how: exits.append(how.status)))
    close.append(one)
    one.exited(one.init, Exit(4, 1))
    assert exits == [4]
    assert one._service.notes.exit_was_seen(one.bundle)


async def test_waiters_get_an_error_when_the_service_ends(place: Path, close: list[Task]) -> None:
    """The error is that of an outage, not of the end of the task."""
    one = task(service(place))
    close.append(one)
    await one.connect(ADDRESS, 1.0)
    one.follow(lambda _: None)
    one.leaves()
    with pytest.raises(errors.Unavailable, match="the tasks service ends"):
        await one.usable(None)


@pytest.mark.parametrize("verb", ["ask", "wait", "identify"])
async def test_a_shim_without_a_pid_is_found_dead_by_a_call(place: Path, close: list[Task], verb: str) -> None:
    """Over gRPC the end of its process ends no connection, and before it has said its pid there is no pidfd."""
    refusing: list[bool] = []

    async def connecting() -> None:
        if refusing:
            raise errors.Unavailable("refused") from ConnectionRefusedError()

    def pid() -> int:
        if verb == "identify":
            refusing.append(True)
            raise errors.Disconnected("it has died")
        return 0

    async def question(_: object) -> None:
        refusing.append(True)
        raise errors.Disconnected("it has died")

    made = connections(connecting, pid)
    one = task(service(place, made))
    close.append(one)
    dead: list[Task] = []
    await one.connect(ADDRESS, 1.0)

    def bury(task: Task) -> None:
        dead.append(task)
        task.dies()
        task.forgotten()

    one.follow(bury)
    if verb == "ask":
        with pytest.raises(errors.NotFound, match="^task c not found$"):
            await one.converse(question)
    elif verb == "wait":
        waiting = one.watch(one.init)
        await asyncio.sleep(0)
        refusing.append(True)
        made.opened[0].exits.set_exception(errors.Disconnected("it has died"))
        with pytest.raises(errors.NotFound, match="^task c not found$"):
            await asyncio.wait_for(waiting, 10)
    await quiet(one._service)
    assert dead == [one]
    assert made.opened[0].is_closed


async def test_a_shim_that_says_unavailable_is_connected_to_once(place: Path, close: list[Task]) -> None:
    """It never says its pid. Its answer is the client's, and a Wait is not repeated without a pause."""

    async def busy(_: object) -> None:
        raise errors.Unavailable("too busy")

    made = connections()
    one = task(service(place, made))
    close.append(one)
    await one.connect(ADDRESS, 1.0)
    one.follow(lambda _: None)
    made.opened[0].exits.set_exception(errors.Unavailable("too busy"))
    one.watch(one.init)
    with pytest.raises(errors.Unavailable, match="too busy"):
        await one.converse(busy)
    await asyncio.sleep(0.05)
    assert len(made.opened) == 1


async def test_a_question_while_the_shim_is_ended_finds_no_task(place: Path, close: list[Task]) -> None:
    """The task was deleted meanwhile, so its client is not told that something is broken."""
    one = task(service(place, connections()))
    close.append(one)
    await one.connect(ADDRESS, 1.0)
    one.follow(lambda _: None)

    async def question(_: object) -> None:
        one.ends()
        raise errors.Disconnected("it has ended")

    with pytest.raises(errors.NotFound, match="^task c not found$"):
        await one.converse(question)
