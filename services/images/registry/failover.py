"""Asking several hosts, several times: who is asked next, and when it is time to give up.

The hosts are gone through in order: first those of which nothing bad is known (:mod:`.host_memory`), then the slow
and the busy, then the dead; a host that will not do (it has not got the thing, or not for us) is not asked
again. If no host did, and any may yet, there is a pause, and another round. In the end the error tells of every host.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from services.images.registry import host_memory
from services.images.registry.endpoint import Place
from services.images.registry.failure import Blame, Failure, combined
from services.images.registry.host_memory import HostMemory
from services.images.registry_timeouts import Retry

P = TypeVar("P", bound=Place)
T = TypeVar("T")


class Failover(Generic[P]):
    """Attempts at one thing, which ``what`` names. The last of ``places`` is the origin: the one that knows best."""

    def __init__(self, what: str, places: Sequence[P], memory: HostMemory, retry: Retry) -> None:
        self.attempts = 0
        self._what = what
        self._places = places
        self._memory = memory
        self._retry = retry
        self._rounds = 0
        self._failures: dict[P, Failure] = {}
        self._done: set[P] = set()
        self._skipped: dict[P, str] = {}
        self._not_before: dict[P, float] = {}

    async def run(self, act: Callable[[P], Awaitable[T]], *, not_first: P | None = None, proves: bool = True) -> T:
        """What ``act`` gives for the first place for which it raises no Failure. ``not_first`` has just failed: others
        go first, and without others it gets a pause.

        ``proves``: that ``act`` succeeds shows that the place is good.
        """
        if not_first is not None and not self.another(not_first):
            await self._pause()
        while True:
            for place in self._round(not_first):
                self.attempts += 1
                try:
                    done = await act(place)
                except Failure as failure:
                    self.note(place, failure)
                    continue
                if proves:
                    self._memory.worked(place.key)
                return done
            not_first = None
            await self._pause()

    def note(self, place: P, failure: Failure) -> None:
        """``place`` failed."""
        self._failures[place] = failure
        if failure.blame is Blame.SLOW:
            self._memory.crawled(place.key, failure.cause)
        elif failure.blame is not Blame.NOBODY:
            self._memory.failed(
                place.key, failure.cause, dead=failure.blame is Blame.DEAD, limited=failure.status == 429
            )
        if not failure.transient or (failure.wait or 0.0) > self._retry.hopeless:
            self._done.add(place)
        elif failure.wait is not None:
            self._not_before[place] = time.monotonic() + min(failure.wait, self._retry.longest_asked)

    def progress(self) -> None:
        """Something was got: what failed before does not count any more."""
        self._rounds = 0

    def others(self, place: P) -> bool:
        """Whether there is another place that has not failed for good."""
        return any(each is not place and each not in self._done for each in self._places)

    def another(self, place: P) -> bool:
        """Whether there is another place that is known to be good, or at least not to be bad."""
        return any(
            each is not place and each not in self._done and self._memory.state(each.key) == host_memory.GOOD
            for each in self._places
        )

    def _round(self, not_first: P | None) -> Iterator[P]:
        self._skipped.clear()
        now = time.monotonic()
        candidates = [
            each for each in self._places if each not in self._done and self._not_before.get(each, 0.0) <= now
        ]
        if not_first in candidates:
            candidates.sort(key=lambda each: each is not_first)  # stable
        resting = []
        for each in candidates:
            if len(self._places) > 1 and self._memory.rests(each.key):
                resting.append(each)
            else:
                yield each
        origin = self._places[-1] if self._places else None
        for each in sorted(resting, key=lambda each: self._memory.state(each.key) == host_memory.DEAD):
            if origin in self._done and each is not origin and self._memory.state(each.key) == host_memory.DEAD:
                self._skipped[each] = f"{each.name}: not asked, {self._memory.explanation(each.key)}"
            else:
                yield each

    async def _pause(self) -> None:
        """Wait for the next round; raises where there is none."""
        self._rounds += 1
        may = [each for each in self._failures if each not in self._done]
        if not may or self._rounds >= self._retry.rounds:
            failures = [self._failures[each] for each in self._places if each in self._failures]
            raise combined(
                self._what, failures, [said for each, said in self._skipped.items() if each not in self._failures]
            )
        now = time.monotonic()
        waits = [max(0.0, self._not_before[each] - now) if each in self._not_before else None for each in may]
        asked = None if None in waits else min(wait for wait in waits if wait is not None)
        await asyncio.sleep(self._retry.pause(self._rounds, asked))
