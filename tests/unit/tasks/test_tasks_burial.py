"""Cleaning up after a dead shim, without any shim."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from services.kit import errors
from services.tasks.bundle import Bundle
from services.tasks.burial import Burial, Limit
from services.tasks.dead_shim import Sighting
from services.tasks.names import Names
from services.tasks.store import Exit, Status
from services.tasks.task import Life
from tests.support import eventually_async
from tests.unit.tasks.tasks_fakes import ADDRESS, FakeNode, service, task


async def deleted(_timeout: float) -> Exit:
    return Exit(137, 1, 7)


@pytest.mark.parametrize(
    "failure", [RuntimeError("can't start new thread"), OSError(errno.EMFILE, "Too many open files")]
)
async def test_cleaning_up_is_tried_again_whatever_it_fails_for(place: Path, failure: Exception) -> None:
    """A task that is neither forgotten nor tried again would stay for ever, and keep its name."""
    failures = [failure]

    def end(_seen: Sighting, _seconds: float) -> list[int]:
        if failures:
            raise failures.pop()
        return []

    gone: list[str] = []
    around = service(place, on_gone=lambda *key: gone.append("/".join(key)))
    dead = task(around, delete=deleted)
    (dead.bundle.path / "init.pid").write_text("7")
    names = Names()
    burial = Burial(around, names, end=end)
    burial.begin(dead)
    assert names.tasks == {("ns", "c"): dead}
    assert await dead.until(lambda: dead.life is Life.GONE, 10)
    await asyncio.wait_for(around.background.wait(), 10)
    assert isinstance(around.node, FakeNode)
    assert around.node.told == ["exit", "delete"]
    assert gone == ["ns/c"]
    assert dead.cleaning.attempts == 1
    assert not dead.bundle.path.exists()
    assert names.tasks == {}
    assert not names.is_taken(("ns", "c"))


async def test_a_pid_that_cannot_be_read_keeps_no_task_that_is_dead(place: Path) -> None:
    """Its processes are dead, as the sighting shows; its end is published, and its name is free."""
    around = service(place)
    dead = task(around, delete=deleted)
    (dead.bundle.path / "init.pid").mkdir()
    around.notes.write_sighting(dead.bundle, Sighting("/bin/shim", ADDRESS))
    names = Names()
    Burial(around, names, end=lambda _seen, _seconds: []).begin(dead)
    assert await dead.until(lambda: dead.life is Life.GONE, 10)
    await asyncio.wait_for(around.background.wait(), 10)
    assert isinstance(around.node, FakeNode)
    assert around.node.told == ["exit", "delete"]
    assert not names.is_taken(("ns", "c"))


async def test_a_task_that_cannot_be_killed_stays(place: Path) -> None:
    """It is UNKNOWN and keeps its name, no event is published, and a client that deletes it gets the reason; at last it
    is removed.
    """
    living = [4711]
    around = service(place)
    dead = task(around, delete=deleted)
    names = Names()
    burial = Burial(around, names, end=lambda _seen, _seconds: list(living))
    burial.begin(dead)
    await asyncio.wait_for(burial.begun(dead), 10)
    assert (await burial.last_state(dead)).status is Status.UNKNOWN
    with pytest.raises(errors.FailedPrecondition, match="^task c: its shim is dead, .* yet: 4711 cannot be killed"):
        await burial.hurry(dead)
    assert names.is_taken(("ns", "c"))
    assert isinstance(around.node, FakeNode)
    assert around.node.told == []
    living.clear()
    await burial.hurry(dead)
    with pytest.raises(errors.NotFound, match="^task c not found$"):
        await burial.last_state(dead)
    await asyncio.wait_for(around.background.wait(), 10)


class Stubborn(Bundle):
    """A bundle that cannot be deleted."""

    def delete(self) -> None:
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("kind", [Bundle, Stubborn])
async def test_files_that_cannot_be_removed_keep_no_task(
    place: Path, caplog: pytest.LogCaptureFixture, kind: type[Bundle]
) -> None:
    """Its processes are dead: the task is gone and its name free, though a file cannot be removed."""
    around = service(place)
    dead = task(around, delete=deleted)
    dead.bundle = kind(dead.bundle.namespace, dead.bundle.id, dead.bundle.path, dead.bundle.work)
    (place / "state/tasks/sightings/ns:c").mkdir()
    (place / "state/tasks/exits/ns:c").mkdir()
    names = Names()
    burial = Burial(around, names, end=lambda _seen, _seconds: [])
    dead.seen = Sighting("/bin/shim")
    burial.begin(dead)
    await asyncio.wait_for(around.background.wait(), 10)
    assert dead.life is Life.GONE
    assert dead.bundle.path.exists() is (kind is Stubborn)
    assert not names.is_taken(("ns", "c"))
    assert "what ns/c left cannot be removed" in caplog.text


async def test_processes_that_do_not_die_delay_no_other_task(place: Path) -> None:
    """This holds however many tasks have such processes: on a file system that does not answer all have."""
    going_on, waiting = threading.Event(), list[Sighting]()

    def end(seen: Sighting, _seconds: float) -> list[int]:
        waiting.append(seen)
        going_on.wait(30)
        return []

    around = service(place)
    burial = Burial(around, Names(), end=end)
    try:
        for number in range(40):
            dead = task(around, f"c{number}", delete=deleted)
            dead.seen = Sighting("/bin/shim")
            burial.begin(dead)
        await eventually_async(lambda: asyncio.sleep(0, len(waiting) == 40), "some wait for others' ends")
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "at once"), 10) == "at once"
    finally:
        going_on.set()
    await asyncio.wait_for(around.background.wait(), 10)


async def test_of_many_dead_shims_a_few_are_buried_at_once(place: Path) -> None:
    """A node may lose all its shims at the same time, and has no processes and threads for all of them."""
    underway, most = 0, 0

    async def delete(_timeout: float) -> Exit:
        nonlocal underway, most
        underway += 1
        most = max(most, underway)
        for _ in range(10):
            await asyncio.sleep(0)
        underway -= 1
        return Exit(137, 1, 7)

    around, names = service(place), Names()
    burial = Burial(around, names, end=lambda _seen, _seconds: [], limit=Limit(3, 60))
    dead = [task(around, f"c{number}", delete=delete) for number in range(12)]
    for each in dead:
        burial.begin(each)
    await asyncio.wait_for(around.background.wait(), 20)
    assert {each.life for each in dead} == {Life.GONE}
    assert most == 3


async def test_what_hangs_delays_no_other(place: Path) -> None:
    """However many cannot be ended, a task that can be ended is gone soon."""
    over = threading.Event()

    def end(seen: Sighting, _seconds: float) -> list[int]:
        if seen.program == "hangs":
            over.wait(60)
        return []

    around, names = service(place), Names()
    burial = Burial(around, names, end=end, limit=Limit(2, 0.05))
    for number in range(5):
        hangs = task(around, f"c{number}", delete=deleted)
        hangs.seen = Sighting("hangs")
        burial.begin(hangs)
    ends = task(around, "ends", delete=deleted)
    burial.begin(ends)
    try:
        assert await ends.until(lambda: ends.life is Life.GONE, 20)
        assert len(names.tasks) == 5
    finally:
        over.set()
    await asyncio.wait_for(around.background.wait(), 20)
    assert not names.tasks
