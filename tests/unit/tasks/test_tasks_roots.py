"""Root file systems that are held, and let go of."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path

import pytest

from services.oci.mounts import Mount
from services.tasks import roots
from services.tasks.burial import Burial
from services.tasks.names import Names
from services.tasks.store import Exit
from tests.support import eventually_async
from tests.unit.tasks.tasks_fakes import service, task


def overlay(place: Path, *more: str) -> Mount:
    """An overlay below ``place``, whose upper directory has a file."""
    for name in ("upper", "work", "lower", "merged"):
        (place / name).mkdir()
    (place / "upper/file").write_text("written")
    options = [f"{name}dir={place / name}" for name in ("work", "upper", "lower")]
    return Mount("overlay", "overlay", (*options, *more))


def mounted(mount: Mount, at: Path) -> None:
    subprocess.run(["mount", "-t", "overlay", "-o", ",".join(mount.options), "overlay", str(at)], check=True)


@pytest.mark.root
async def test_an_overlay_is_there_until_it_is_let_go_of(place: Path) -> None:
    """Though nothing is mounted at the directory any more."""
    mount = overlay(place, "index=off")
    mounted(mount, place / "merged")
    try:
        root = roots.hold(place / "merged", [mount], place)
    finally:
        subprocess.run(["umount", str(place / "merged")], check=True)
    assert root >= 0
    try:
        assert os.listdir(place / "merged") == []
        assert os.stat("file", dir_fd=root).st_size == len("written")
        assert not os.get_inheritable(root)
    finally:
        await roots.Roots().let_go(root)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(root)


@pytest.mark.root
@pytest.mark.parametrize(
    "options", [(), ("index=on",), ("index=off", "volatile")], ids=["an index perhaps", "an index", "volatile"]
)
def test_what_is_in_the_way_of_others_is_not_held(place: Path, options: tuple[str, ...]) -> None:
    """The kernel refuses a second mount of an upper directory where overlays have an index; and nothing is written when
    a volatile overlay is unmounted.
    """
    mount = overlay(place, *options)
    mounted(Mount("overlay", "overlay", (*mount.options, "index=off")), place / "merged")
    try:
        assert roots.hold(place / "merged", [mount], place) == -1
    finally:
        subprocess.run(["umount", str(place / "merged")], check=True)


@pytest.mark.root
def test_other_mounts_are_not_held(place: Path) -> None:
    """A bind mount, several mounts, none, an overlay that writes elsewhere, a directory that no overlay is mounted at,
    and one that does not exist.
    """
    mount = overlay(place, "index=off")
    assert roots.hold(place / "merged", [mount], place) == -1
    assert roots.hold(place / "nowhere", [mount], place) == -1
    mounted(mount, place / "merged")
    try:
        for mounts in ([], [mount, mount], [Mount("bind", str(place / "lower"), ("rbind", "ro"))]):
            assert roots.hold(place / "merged", mounts, place) == -1
        assert roots.hold(place / "merged", [mount], place / "upper/file") == -1
    finally:
        subprocess.run(["umount", str(place / "merged")], check=True)


class Disk:
    """Closes nothing, and is done with a descriptor when it is told to be."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.written = {fd: threading.Event() for fd in range(10)}

    def close(self, fd: int) -> None:
        self.asked.append(fd)
        self.written[fd].wait(30)

    def end(self) -> None:
        for each in self.written.values():
            each.set()


async def test_a_disk_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    """Its thread goes on."""
    disk = Disk()
    try:
        await asyncio.wait_for(roots.Roots(seconds=0.05, close=disk.close).let_go(1), 15)
        await eventually_async(lambda: asyncio.sleep(0, disk.asked == [1]), "it is not closed")
    finally:
        disk.end()


async def test_roots_are_let_go_of_in_turn() -> None:
    """The last unmount of the first writes what the others would."""
    disk = Disk()
    going = roots.Roots(close=disk.close)
    try:
        work = [asyncio.create_task(going.let_go(fd)) for fd in (1, 2)]
        await eventually_async(lambda: asyncio.sleep(0, disk.asked == [1]), "the first is not closed")
        disk.written[1].set()
        await asyncio.wait_for(work[0], 15)
        await eventually_async(lambda: asyncio.sleep(0, disk.asked == [1, 2]), "the next is not closed")
        assert not work[1].done()
        disk.written[2].set()
        await asyncio.wait_for(work[1], 15)
    finally:
        disk.end()


async def test_the_name_is_taken_until_the_root_is_let_go_of(place: Path) -> None:
    """The task is gone before that. Whoever creates one of its name waits."""

    async def deleted(_timeout: float) -> Exit:
        return Exit(137, 1, 7)

    let_go: list[int] = []
    written = asyncio.Event()

    async def letting_go(root: int) -> None:
        let_go.append(root)
        await written.wait()

    around = service(place)
    dead = task(around, delete=deleted)
    dead._root = 4711
    names = Names()
    burial = Burial(around, names, end=lambda _seen, _seconds: [], let_go=letting_go)
    burial.begin(dead)
    await eventually_async(lambda: asyncio.sleep(0, let_go == [4711]), "it is not let go of")
    assert names.tasks == {}
    assert await names.look(dead.key) is None
    assert names.has_just_ended(dead.key)
    creating = asyncio.create_task(names.settled(dead.key))
    await asyncio.sleep(0)
    assert names.is_taken(dead.key)
    assert not creating.done()
    written.set()
    await asyncio.wait_for(creating, 15)
    assert not names.is_taken(dead.key)
    await asyncio.wait_for(around.background.wait(), 10)
