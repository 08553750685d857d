"""A process gives back memory when a burst of work is over."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from types import ModuleType
from typing import Any

import pytest

from services.kit import memory
from tests.support import TOP


class Clock:
    """A clock of time and of processor time."""

    def __init__(self) -> None:
        self.used = 0.0
        self.share: list[float] = []
        """For each pause to come, the share of it that the process works; the process ends after the last."""

    async def sleep(self, seconds: float) -> None:
        if not self.share:
            raise asyncio.CancelledError
        self.used += seconds * self.share.pop(0)


class Cycle:
    """A reference cycle, which only the garbage collector frees."""

    def __init__(self) -> None:
        self.me = self


class Sizes:
    """A fake of the resident size: its first value, and the one that follows."""

    def __init__(self, grown_by: int = 5 << 20) -> None:
        self._then = 20 << 20
        self._grown_by = grown_by

    def __call__(self) -> int:
        found, self._then = self._then, (20 << 20) + self._grown_by
        return found


def run(resident: Sizes, *share: float, **how: Any) -> None:
    """Run a process that works ``share`` of each pause."""
    clock = Clock()
    clock.share = list(share)
    work = memory.give_back(resident=resident, used=lambda: clock.used, sleep=clock.sleep, **how)
    with pytest.raises(asyncio.CancelledError):
        work.send(None)


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def grown(by: int, *share: float) -> weakref.ref[Cycle]:
    """Run a process that grows while it holds a reference cycle, then drops the cycle, and then works ``share`` of each
    pause.
    """
    kept = [Cycle()]
    found = weakref.ref(kept[0])
    gc.disable()
    try:
        kept.clear()
        run(Sizes(by), *share)
    finally:
        gc.enable()
    return found


@pytest.mark.parametrize(
    ("by", "share", "freed"),
    [
        (5 << 20, [0.9, 0.9], False),  # a look takes 40 ms, and somebody waits for an answer
        (5 << 20, [0.9, 0.05], True),
        (100 << 20, [0.9, 0.9], False),
        (100 << 20, [0.9, 0.01], True),
        (5 << 20, [0.01], True),
    ],
)
def test_cycles_are_looked_for_when_there_is_time(by: int, share: list[float], freed: bool) -> None:
    assert (grown(by, *share)() is None) == freed


def test_loaded_modules_are_scanned_once() -> None:
    """A garbage collection of everything that a process has loaded takes 40 ms of its loop. Loaded modules stay, so
    later collections skip them; objects of calls under way are not skipped.
    """
    grown(5 << 20, 0.9)
    assert gc.get_freeze_count() == 0
    grown(5 << 20, 0.01)
    assert gc.get_freeze_count() > 1000


def test_memory_in_use_at_a_look_is_freed_later() -> None:
    """A process at rest may still hold objects that become garbage once it has worked on; while it works a little, none
    of its objects is taken for permanent.
    """
    grown(5 << 20, 0.05)
    assert gc.get_freeze_count() == 0
    kept = [Cycle()]
    found = weakref.ref(kept[0])
    sizes, collected = Sizes(), list[bool]()

    def trim() -> None:
        collected.append(found() is None)
        kept.clear()

    gc.disable()
    try:
        run(sizes, 0.01, 0.9, 0.01, trim=trim)
    finally:
        gc.enable()
    assert collected == [False, False, True]


@pytest.mark.parametrize(
    ("grown_by", "share", "told"),
    [
        (0, [0.01], 0),  # it has not grown
        (10 << 20, [0.9, 0.9], 0),  # it works
        (10 << 20, [0.9, 0.01, 0.01, 0.01, 0.01], 2),
    ],
)
def test_caches_hear_of_a_burst_that_is_over(grown_by: int, share: list[float], told: int) -> None:
    """They are called twice, so that they can tell which entries are in use; not while the process works, and not again
    before it has grown once more.
    """
    heard = list[str]()
    run(Sizes(grown_by), *share, caches=[lambda: heard.append("drop")])
    assert len(heard) == told


@pytest.mark.parametrize(("more", "least", "most"), [(100_000, 60, 60), (1_000_000, 3, 4)])
def test_very_many_objects_are_looked_through_seldom(
    more: int, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten thousand open Writes a collection takes a fifth of a second, in which no call is answered: in 600 s
    there are three.
    """
    now, looks = [0.0], [0]

    def collect() -> int:
        looks[0] += not gc.get_freeze_count()
        now[0] += 0.2
        return 0

    def trim() -> None:
        now[0] += 10

    monkeypatch.setattr(gc, "collect", collect)
    counts = chain([1_000_000], repeat(1_000_000 + more))
    run(Sizes(), *[0.09] * 60, look=200.0, trim=trim, objects=lambda: next(counts), clock=lambda: now[0])
    assert least <= looks[0] <= most


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc"])
def test_objects_are_counted_whatever_allocates_them(allocator: str) -> None:
    """Images has malloc: there, too, very many objects are looked through seldom."""
    counting = (
        "from services.kit import memory; before = memory._objects(); kept = [[each] for each in range(50_000)]; "
        "print(memory._objects() - before)"
    )
    counted = subprocess.run(
        [sys.executable, "-c", counting],
        env={**os.environ, "PYTHONMALLOC": allocator},
        cwd=TOP,
        check=True,
        capture_output=True,
    )
    assert 100_000 < int(counted.stdout) < 300_000


_BURST = """
import ctypes, gc, sys
from services.kit import memory
if sys.argv[1] == "malloc":
    memory.from_malloc()
before, burst = memory._resident(), [{"key": [each]} for each in range(200_000)]
most = memory._resident()
kept = burst[::500]
burst = None
gc.collect()
memory._trim()
print((memory._resident() - before) / (most - before))
kept.clear()
again = [[str(each)] for each in range(1000)]
"""


@pytest.mark.parametrize(("allocator", "least", "most"), [("pymalloc", 0.9, 1.1), ("malloc", 0.0, 0.5)])
def test_a_process_gives_back_more_once_its_objects_are_from_malloc(allocator: str, least: float, most: float) -> None:
    """One of 500 objects of a burst stays. A copy of another process can have malloc from then on, although it has
    objects of Python's own allocator, which are freed as before.
    """
    done = subprocess.run(
        [sys.executable, "-c", _BURST, allocator],
        env={**os.environ, "PYTHONMALLOC": ""},
        cwd=TOP,
        check=True,
        capture_output=True,
    )
    assert least <= float(done.stdout) <= most


def test_what_is_shared_is_not_looked_at() -> None:
    """A collection would write to each object of the modules, and make their pages this process's own. What came later
    is collected, and nothing more is taken for permanent.
    """
    gc.freeze()
    frozen, cycle = gc.get_freeze_count(), Cycle()
    found = weakref.ref(cycle)
    del cycle
    for share in (0.01, 0.05, 0.9):
        run(Sizes(), share, shared=True)
        run(Sizes(100 << 20), 0.9, share, shared=True)
        assert gc.get_freeze_count() == frozen
    assert found() is None


def test_caches_of_libraries_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the named packages' caches are dropped: others may need theirs."""
    here, there = ModuleType("here.addresses"), ModuleType("there")
    for module in (here, there):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(module)["remembered"] = functools.lru_cache(len)
        vars(module)["remembered"](b"a stranger's")
    caches: list[Callable[[], None]] = []
    monkeypatch.setattr(memory, "_caches", caches)
    memory.forget_of("here")
    run(Sizes(), 0.05, caches=caches)
    assert [vars(each)["remembered"].cache_info().currsize for each in (here, there)] == [0, 1]
