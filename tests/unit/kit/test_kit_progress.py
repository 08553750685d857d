"""Calls that make progress, and such that make none; and what the threads of a process are seen to do."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from services.kit import at_work, progress
from services.kit.call import CURRENT, STALL, Call
from services.kit.deadlines import Deadlines
from services.kit.shielding import shielded
from tests.support import eventually

METHOD = "/x.Y/Z"
STILL = 0.3


class Watched:
    """A call, and the sentence with which its watch ended it."""

    def __init__(self, call: Call) -> None:
        self.said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        deadlines = Deadlines(asyncio.get_running_loop())
        self.watch = progress.Watch(call, STILL, deadlines, self.said.set_result)

    async def lives(self) -> bool:
        """Whether the call still goes on after three times its stall."""
        await asyncio.wait([self.said], timeout=3 * STILL)
        return not self.said.done()


@contextmanager
def thread(work: str) -> Iterator[None]:
    """A thread that works, or waits for what is no disk."""
    end = threading.Event()

    def run() -> None:
        if work == "waits":
            end.wait()
        while not end.is_set():
            sum(range(1000))

    running = threading.Thread(target=run)
    running.start()
    try:
        yield
    finally:
        end.set()
        running.join()


async def test_a_call_that_only_waits_ends() -> None:
    """The sentence names the call and the time, and says that nothing works for it."""
    with thread("waits"):
        watched = Watched(Call(METHOD, {}))
        said = await asyncio.wait_for(watched.said, 20)
    assert said.startswith(f"{METHOD} made no progress for {STILL:g} s: ")


async def test_a_thread_that_works_is_progress() -> None:
    """However long it takes."""
    with thread("works"):
        watched = Watched(Call(METHOD, {}))
        assert await watched.lives()
    assert (await asyncio.wait_for(watched.said, 20)).startswith(METHOD)


async def test_messages_are_progress() -> None:
    """A stream of answers may last for ever."""
    call = Call(METHOD, {})
    watched = Watched(call)
    for _ in range(30):
        call.size += 1
        await asyncio.sleep(STILL / 10)
    assert not watched.said.done()
    watched.watch.end()


@pytest.mark.parametrize("how", ["itself", "shielded"])
async def test_a_call_to_another_process_is_progress(how: str) -> None:
    """That one has a limit of its own. It counts for the work of a handler that outlives its caller, too."""
    call = Call(METHOD, {})
    CURRENT.set(call)

    async def work() -> bool:
        current = CURRENT.get()
        assert current is not None
        current.waits(1)
        try:
            return await Watched(call).lives()
        finally:
            current.waits(-1)

    assert await (work() if how == "itself" else shielded(work()))
    assert call.elsewhere == 0


@pytest.mark.parametrize(
    ("sent", "stall"),
    [("10", 10.0), ("0.5", 0.5), ("0", None), ("-1", None), ("nan", None), ("inf", None), ("soon", None)],
)
def test_a_stall_that_means_nothing_is_none(sent: str, stall: float | None) -> None:
    """Headers come from clients."""
    assert progress.stall_of(Call(METHOD, {STALL: sent})) == stall


def test_a_thread_that_works_is_seen() -> None:
    """One that waits for another thread is not, once it has come so far."""

    def one() -> at_work.Signs | None:
        seen = at_work.signs()
        return seen if [each.doing for each in seen.values()] == [""] else None

    with thread("waits"), thread("works"):
        seen = eventually(one, "not just one thread is at work")
    assert at_work.described(seen).endswith(" runs")


def test_each_file_system_has_a_sign() -> None:
    """Whatever this machine's are: none fails, and memory is no disk that could stand still alone."""
    for directory in ("/", "/tmp", "/proc", "/dev/shm"):
        fd = os.open(directory, os.O_RDONLY)
        try:
            mount = at_work.mount_of("/proc/self", fd)
            device = os.fstat(fd).st_dev
        finally:
            os.close(fd)
        assert mount.kind
        assert mount.kind == "btrfs" or mount.device == f"{os.major(device)}:{os.minor(device)}"
        mount.done()
    assert mount.here
    assert mount.done() == at_work.of_all()


@pytest.mark.parametrize(
    ("mount", "here"),
    [
        (at_work.Mount("254:0", "ext4", "/dev/vda"), True),
        (at_work.Mount("0:50", "tmpfs", "none"), True),
        (at_work.Mount("0:50", "overlay", "overlay"), False),  # over whatever
        (at_work.Mount("0:50", "fuse.sshfs", "/dev/fuse"), False),
        (at_work.Mount("0:50", "nfs4", "server:/x"), False),
        (at_work.Mount("", "", ""), False),
    ],
)
def test_only_what_is_here_is_asked(mount: at_work.Mount, here: bool) -> None:
    """stat(2) of a file elsewhere may never return."""
    assert mount.here is here
    assert (mount.done() == b"") is (mount.kind in ("fuse.sshfs", "nfs4"))
