"""What each process does to become small again."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from services.kit import memory


class Clock:
    """Time, and what a process has used of a processor."""

    def __init__(self) -> None:
        self.used = 0.0
        self.share: list[float] = []
        """Of each pause to come, what the process works; it ends after the last."""

    async def sleep(self, seconds: float) -> None:
        if not self.share:
            raise asyncio.CancelledError
        self.used += seconds * self.share.pop(0)


class Cycle:
    """What only a look for cycles frees."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def grown(by: int, *share: float) -> weakref.ref[Cycle]:
    """A process that grows while it has a cycle in its hands, which it lets go; works ``share`` of each pause then."""
    kept = [Cycle()]
    found = weakref.ref(kept[0])
    first, clock = [20 << 20], Clock()
    clock.share = list(share)
    gc.disable()
    try:
        kept.clear()
        work = memory.give_back(resident=lambda: first.pop() if first else (20 << 20) + by, used=lambda: clock.used, sleep=clock.sleep)
        with pytest.raises(asyncio.CancelledError):
            work.send(None)
    finally:
        gc.enable()
    return found


@pytest.mark.parametrize(("by", "share", "freed"), [
    (5 << 20, [0.9], True),
    (100 << 20, [0.9, 0.9], False),  # a look among so much takes 100 ms, and somebody waits for an answer
    (100 << 20, [0.9, 0.01], True),
    (5 << 20, [0.01], True),
])
def test_cycles_are_looked_for_when_there_is_time(by: int, share: list[float], freed: bool) -> None:
    assert (grown(by, *share)() is None) == freed


def test_what_was_loaded_is_looked_through_once() -> None:
    """A look for cycles among all that a process has loaded takes 40 ms of its loop; it stays loaded, so the next looks pass over it. What calls have in their hands does not."""
    grown(5 << 20, 0.9)
    assert gc.get_freeze_count() == 0
    grown(5 << 20, 0.01)
    assert gc.get_freeze_count() > 1000
