"""Asks several hosts, several times: which is asked next, and when to give up.

The hosts are tried in order: first those of which nothing bad is known (:mod:`.host_memory`), then slow and busy ones,
then dead ones. A host that cannot help (it does not have the thing, or not for us) is not asked again. If no host has
helped, and any still may, there is a pause and another round. The final error names every host.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from services.images import figures, waits
from services.images.registry import host_memory, trace
from services.images.registry.endpoint import Place
from services.images.registry.failure import WORDS, Blame, Failure, combined
from services.images.registry.host_memory import HostMemory
from services.images.registry_timeouts import Retry
from services.kit import tracing

P = TypeVar("P", bound=Place)
T = TypeVar("T")


class Failover(Generic[P]):
    """Attempts at one operation, which ``what`` names. The last of ``places`` is the origin, whose answer counts
    most.
    """

    def __init__(
        self,
        what: str,
        places: Sequence[P],
        memory: HostMemory,
        retry: Retry,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``clock`` gives the time, in seconds, by which hosts rest."""
        self.attempts = 0
        self._clock = clock
        self._sleep = sleep
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
        """The result of ``act`` for the first place for which it raises no Failure. ``not_first`` has just failed:
        other places are tried first; if there are none, it is tried after a pause.

        ``proves``: success of ``act`` shows that the place is good.
        """
        if not_first is not None and not self.another(not_first):
            await self._pause()
        while True:
            for place in self._round(not_first):
                self.attempts += 1
                trace.attempt.set(self.attempts)
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
        """Note that ``place`` failed. The span of the operation says so: one that another host helps is no error."""
        self._failures[place] = failure
        tracing.current().set(**{"splitd.registry.failures": "; ".join(map(str, self._failures.values()))[:WORDS]})
        if failure.blame is Blame.SLOW:
            self._memory.was_slow(place.key, failure.cause)
        elif failure.blame is not Blame.NOBODY:
            self._memory.failed(
                place.key, failure.cause, dead=failure.blame is Blame.DEAD, limited=failure.status == 429
            )
        if not failure.transient or (failure.wait or 0.0) > self._retry.hopeless:
            self._done.add(place)
        elif failure.wait is not None:
            self._not_before[place] = self._clock() + min(failure.wait, self._retry.longest_asked)

    def progress(self) -> None:
        """Note progress: earlier failures do not count any more."""
        self._rounds = 0

    def others(self, place: P) -> bool:
        """Whether there is another place that has not failed for good."""
        return any(each is not place and each not in self._done for each in self._places)

    def another(self, place: P) -> bool:
        """Whether there is another place that is good as far as is known."""
        return any(
            each is not place and each not in self._done and self._memory.state(each.key) == host_memory.GOOD
            for each in self._places
        )

    def _round(self, not_first: P | None) -> Iterator[P]:
        self._skipped.clear()
        now = self._clock()
        candidates = [
            each for each in self._places if each not in self._done and self._not_before.get(each, 0.0) <= now
        ]
        if not_first in candidates:
            candidates.sort(key=lambda each: each is not_first)  # the sort is stable
        resting = []
        for each in candidates:
            if len(self._places) > 1 and self._memory.is_avoided(each.key):
                resting.append(each)
                said = "; ".join(f"{each.name}: {self._memory.explanation(each.key)}" for each in resting)
                tracing.current().set(**{"splitd.registry.resting": said[:WORDS]})
            else:
                yield each
        origin = self._places[-1] if self._places else None
        for each in sorted(resting, key=lambda each: self._memory.state(each.key) == host_memory.DEAD):
            if origin in self._done and each is not origin and self._memory.state(each.key) == host_memory.DEAD:
                self._skipped[each] = f"{each.name}: not asked, {self._memory.explanation(each.key)}"
            else:
                yield each

    async def _pause(self) -> None:
        """Wait for the next round; raise the final error if there is none."""
        self._rounds += 1
        may = [each for each in self._failures if each not in self._done]
        if not may or self._rounds >= self._retry.rounds:
            failures = [self._failures[each] for each in self._places if each in self._failures]
            raise combined(
                self._what, failures, [said for each, said in self._skipped.items() if each not in self._failures]
            )
        now = self._clock()
        times = {each: self._not_before[each] - now if each in self._not_before else None for each in may}
        asked = None if None in times.values() else max(0.0, min(time for time in times.values() if time is not None))
        first = min(may, key=lambda each: times[each] or 0.0)
        pause = self._retry.pause(self._rounds, asked)
        failure = self._failures[first]
        about: dict[str, str | float | bool] = {
            "splitd.pause.reason": _reason(failure),
            "splitd.pause.ms": round(pause * 1000, 3),
            "splitd.registry.round": self._rounds,
            **failure.attributes,
        }
        words = _words(first.name, failure, pause)
        figures.paused(first.name, _reason(failure), pause)
        with waits.waiting(waits.PAUSE, words, ref="", host=first.name, lasts=pause, **about):
            await self._sleep(pause)
        # A timer may end a little early. Hosts whose time is over by then would be left out of the next round.
        for each in [each for each, until in self._not_before.items() if until <= now + pause]:
            del self._not_before[each]


def _reason(failure: Failure) -> str:
    """``429``; ``Retry-After`` of another status; ``retry`` for a pause of our own."""
    if failure.status == 429:
        return "429"
    return "Retry-After" if failure.wait is not None else "retry"


def _words(name: str, failure: Failure, pause: float) -> str:
    status = f" ({failure.status})" if failure.status else ""
    if failure.wait is not None:
        return f"waiting for {name}: asked to wait {failure.wait:g} s{status}"
    return f"waiting for {name}: trying again in {pause:.1f} s{status or f' ({failure.cause[:80]})'}"
