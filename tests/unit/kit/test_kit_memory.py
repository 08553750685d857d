"""What a process gives back when it has done much and has little to do."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from services.kit import memory


class Clock:
    """Time, what a process has used of a processor, and how much of it is resident, for :func:`memory.give_back`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resident, self.used, self.looks = 20 << 20, 0.0, 0
        self.share: list[float] = []
        """Of each pause to come, what the process works; it ends after the last."""
        monkeypatch.setattr(memory, "_resident", lambda: self.resident)
        monkeypatch.setattr(memory.time, "process_time", lambda: self.used)
        monkeypatch.setattr(memory.asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        if not self.share:
            raise asyncio.CancelledError
        self.used += seconds * self.share.pop(0)

    def run(self, *share: float) -> None:
        self.share = list(share)
        work = memory.give_back()
        with pytest.raises(asyncio.CancelledError):
            work.send(None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    yield Clock(monkeypatch)
    gc.unfreeze()


class Cycle:
    """What only a look for cycles frees."""

    def __init__(self) -> None:
        self.me = self


def grown(clock: Clock, by: int, monkeypatch: pytest.MonkeyPatch, *share: float) -> weakref.ref[Cycle]:
    """A process that grows while it has a cycle in its hands, which it lets go; works ``share`` of each pause then."""
    kept = [Cycle()]
    found = weakref.ref(kept[0])
    first, clock.resident = clock.resident, clock.resident + by
    monkeypatch.setattr(memory, "_resident", lambda seen=iter([first]): next(seen, clock.resident))  # type: ignore[misc]
    gc.disable()
    try:
        kept.clear()
        clock.run(*share)
    finally:
        gc.enable()
    return found


@pytest.mark.parametrize(("by", "share", "freed"), [
    (5 << 20, [0.9], True),
    (100 << 20, [0.9, 0.9], False),  # a look among so much takes 100 ms, and somebody waits for an answer
    (100 << 20, [0.9, 0.01], True),
    (5 << 20, [0.01], True),
])
def test_cycles_are_looked_for_when_there_is_time(clock: Clock, monkeypatch: pytest.MonkeyPatch, by: int, share: list[float], freed: bool) -> None:
    assert (grown(clock, by, monkeypatch, *share)() is None) == freed


def test_what_was_loaded_is_looked_through_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look for cycles among all that a process has loaded takes 40 ms of its loop; it stays loaded, so the next looks pass over it. What calls have in their hands does not."""
    grown(clock, 5 << 20, monkeypatch, 0.9)
    assert gc.get_freeze_count() == 0
    grown(clock, 5 << 20, monkeypatch, 0.01)
    assert gc.get_freeze_count() > 1000


def test_what_was_in_use_at_a_look_is_freed_later(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a process rests, it may still hold what is garbage once it has worked on; while it works a little, nothing that it has is taken for what stays."""
    grown(clock, 5 << 20, monkeypatch, 0.05)
    assert gc.get_freeze_count() == 0
    kept = [Cycle()]
    found = weakref.ref(kept[0])
    at = iter((clock.resident - (5 << 20),))
    monkeypatch.setattr(memory, "_resident", lambda: next(at, clock.resident))
    collected = []
    monkeypatch.setattr(memory._libc, "malloc_trim", lambda _: (collected.append(found() is None), kept.clear()))
    gc.disable()
    try:
        clock.run(0.01, 0.9, 0.01)
    finally:
        gc.enable()
    assert collected == [False, False, True]


def test_caches_hear_of_a_burst_that_is_over(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, so that they can tell what is in use; not while the process works, and not again before it has grown once more."""
    told: list[int] = []
    monkeypatch.setattr(memory, "_caches", [lambda: told.append(clock.resident)])
    first, at = clock.resident, iter(())
    monkeypatch.setattr(memory, "_resident", lambda: next(at, clock.resident))

    def looks(*share: float) -> int:
        nonlocal at
        told.clear()
        at = iter((first,))
        clock.run(*share)
        return len(told)

    assert looks(0.01) == 0, "it has not grown"
    clock.resident += 10 << 20
    assert looks(0.9, 0.9) == 0, "it works"
    assert looks(0.9, 0.01, 0.01, 0.01, 0.01) == 2
