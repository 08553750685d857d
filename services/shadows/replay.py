"""Makes copies of calls to a candidate, and has the answers compared.

Copies run side by side, except that those about one object keep the order in which ours answered the calls. A candidate
with a store of its own gets writes, under names of its own, and knows only what was made since the shadow began: a copy
about anything older is skipped. A candidate without one gets reads only.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from services.kit import errors, loops
from services.shadows import methods_convert as methods
from services.shadows.answers_convert import fields_of, shown
from services.shadows.comparison import Comparison
from services.shadows.store import Answer, Copy, MethodReport, Service

AT_ONCE = 8
"""Copies that are made at once."""
KNOWN = 100_000
"""Objects of the candidate that are remembered. Copies about forgotten ones are skipped."""
_ALWAYS, _NOW_AND_THEN = 100, 10
"""Ours is asked a second time at the first calls of each method, and later at one of so many."""

OLDER = "it is about something older than the shadow"
READ_ONLY = "the candidate has no store of its own"
WHOLE = "lists of different stores"
FILES = "the files are in our snapshot only"
AWAY = "the candidate was away"
LOST = "ours did not answer"
GONE = "ours answers otherwise by now"
UNREADABLE = "its request cannot be read"


class Replay:
    """The copies of one shadow. Use it on one loop."""

    def __init__(self, ours: Service, candidate: Service, *, prefix: str = "") -> None:
        """``prefix`` is put before the names of what copies make; empty: the candidate has no store of its own."""
        self._ours = ours
        self._candidate = candidate
        self._prefix = prefix
        self._comparisons: dict[str, Comparison] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self._last: dict[str, asyncio.Task[None]] = {}
        """The last copy about each object."""
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tasks = loops.Tasks()

    async def take(self, copy: Copy) -> None:
        """Begin to make a copy, once there is room: the caller then takes no further ones from its queue."""
        if copy.path == methods.REMOVED:
            if copy.code == "OK":
                for path, request in methods.removals(copy.requests[0]):
                    await self._begin(Copy(path, [request], answers=[b""]))
        else:
            await self._begin(copy)

    def dropped(self, path: str, count: int) -> None:
        """Count copies that did not fit into the queue."""
        method = methods.WRITE if path == methods.STORED else methods.METHODS.get(path)
        if method is not None:
            comparison = self._of(method.name)
            comparison.calls += count
            comparison.dropped += count

    async def _begin(self, copy: Copy) -> None:
        method = methods.WRITE if copy.path == methods.STORED else methods.METHODS.get(copy.path)
        if method is None:
            return
        comparison = self._of(method.name)
        comparison.calls += 1
        if copy.seconds:
            comparison.ours.add(copy.seconds)
        try:
            messages = [] if copy.path == methods.STORED else [method.request(data) for data in copy.requests]
        except ValueError:  # ours has refused it
            comparison.skip(UNREADABLE)
            return
        names = self._names(method, copy, messages)
        before = [self._last[name] for name in names if name in self._last]
        await self._room.acquire()
        task = self._tasks.start("a copy of a call", self._in_order(method, copy, messages, comparison, before))
        for name in names:
            self._last[name] = task
        task.add_done_callback(lambda done: self._ended(names, done))

    def _ended(self, names: Sequence[str], task: asyncio.Task[None]) -> None:
        self._room.release()
        for name in names:
            if self._last.get(name) is task:
                del self._last[name]

    def _names(self, method: methods.Method, copy: Copy, messages: Sequence[Any]) -> list[str]:
        if copy.path == methods.STORED:
            digest, _, ref = methods.stored(copy.requests[0])
            return [digest, ref]
        names = methods.names_of(messages[0], (*method.uses, *method.makes, *method.ends))
        if method is methods.WRITE and copy.answers and (digest := methods.committed(method.answers(copy.answers))):
            names.append(digest)
        return names

    async def _in_order(
        self,
        method: methods.Method,
        copy: Copy,
        messages: Sequence[Any],
        comparison: Comparison,
        before: Sequence[asyncio.Task[None]],
    ) -> None:
        if before:
            await asyncio.wait(before)
        try:
            reason = await self._make(method, copy, messages, comparison)
        except errors.Disconnected:
            reason = AWAY
        if reason:
            comparison.skip(reason)

    async def _make(self, method: methods.Method, copy: Copy, messages: Sequence[Any], comparison: Comparison) -> str:
        """Make the copy and compare; returns the reason if that cannot be done."""
        if copy.code in ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"):
            return LOST
        if copy.path == methods.STORED:
            return await self._stored(copy, comparison)
        if method.kind == "write" and not self._prefix:
            return READ_ONLY
        if method.kind == "list" and self._prefix:
            return WHOLE
        if method.of_files and self._prefix:
            return FILES
        needed = methods.names_of(messages[0], method.uses)
        if method is methods.WRITE and methods.resumes(messages[0], method.answers((copy.answers or ())[:1])):
            needed = methods.names_of(messages[0], method.makes)
        if self._prefix and not all(name in self._known for name in needed):
            return OLDER
        renamed = self._prefix and any(field != "digest" for field in (*method.uses, *method.makes, *method.ends))
        requests = (
            [methods.renamed(method, message, self._named).SerializeToString() for message in messages]
            if renamed
            else copy.requests
        )
        found, answers = await self._asked(self._candidate, method, requests)
        ours, again = await self._of_ours(method, copy, comparison, answers, found)
        if ours is None:
            return LOST
        if copy.answers is None and copy.code != ours.code:
            return GONE
        comparison.compare(ours, found, again, request=lambda: shown(messages[0]), trace=copy.trace)
        if found.code == "OK":
            self._learn(method, messages[0])
            if method is methods.WRITE and (digest := methods.committed(method.answers(answers))):
                self._knows(digest)
                self._forgets(*methods.names_of(messages[0], method.makes))
        return ""

    async def _of_ours(
        self, method: methods.Method, copy: Copy, comparison: Comparison, answers: Sequence[bytes], found: Answer
    ) -> tuple[Answer | None, Answer | None]:
        """What ours answered, and what it answers now if it is asked once more. The candidate has answered
        ``answers``, which are ``found``: where ours has the same bytes, they are not read again.
        """
        live = copy.answers is not None or copy.code != "OK"
        if not live:
            ours = await self._again(method, copy, answers, found)
        elif copy.code != "OK":
            ours = Answer(copy.code, {}, copy.seconds)
        else:
            same = found.code == "OK" and copy.answers == answers
            fields = found.fields if same else fields_of(method.answers(copy.answers or ()))
            ours = Answer("OK", fields, copy.seconds)
        if ours is None or method.kind == "write":
            return ours, None
        if not live:
            comparison.ours.add(ours.seconds)
        if method.same or (comparison.calls > _ALWAYS and comparison.calls % _NOW_AND_THEN):
            return ours, None
        return ours, await self._again(method, copy, answers, found)

    async def _again(
        self, method: methods.Method, copy: Copy, answers: Sequence[bytes], found: Answer
    ) -> Answer | None:
        try:
            return (await self._asked(self._ours, method, copy.requests, (answers, found)))[0]
        except errors.Disconnected:
            return None

    async def _asked(
        self,
        service: Service,
        method: methods.Method,
        requests: Sequence[bytes],
        before: tuple[Sequence[bytes], Answer] = ((), Answer("")),
    ) -> tuple[Answer, Sequence[bytes]]:
        """The answer of a service, and its messages. ``before`` is the same of another one."""
        begun = time.monotonic()
        try:
            answers = await service.call(method.path, requests)
        except errors.Disconnected:
            raise
        except errors.NodeError as error:
            return Answer(errors.name(error.code), {}, time.monotonic() - begun), ()
        seconds = time.monotonic() - begun
        same = before[1].code == "OK" and answers == before[0]
        return Answer(
            "OK", before[1].fields if same else fields_of(method.answers(answers), self._unnamed), seconds
        ), answers

    async def _stored(self, copy: Copy, comparison: Comparison) -> str:
        """Write the blob that ours has, and compare what became of it."""
        if not self._prefix:
            return READ_ONLY
        if copy.code != "OK":
            return "the bytes are gone"
        digest, size, ref = methods.stored(copy.requests[0])
        begun = time.monotonic()
        try:
            answers = await self._candidate.copied(digest, size, self._named(ref), self._ours)
        except errors.Disconnected:
            raise
        except errors.NodeError as error:
            found = Answer(errors.name(error.code), {}, time.monotonic() - begun)
        else:
            last = methods.WRITE.answers(answers)[-1:]
            kept = {name: value for name, value in fields_of(last).items() if name in ("digest", "offset")}
            found = Answer("OK", kept, time.monotonic() - begun)
            self._knows(digest)
        ours = Answer("OK", {"digest": digest, "offset": str(size)})
        comparison.compare(
            ours, found, None, request=lambda: f"ref={ref}, digest={digest}, size={size}", trace=copy.trace
        )
        return ""

    # -- names

    def _named(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _unnamed(self, text: str) -> str:
        return text.replace(self._prefix, "") if self._prefix else text

    def _learn(self, method: methods.Method, message: object) -> None:
        self._forgets(*methods.names_of(message, method.ends))  # type: ignore[arg-type]
        for name in methods.names_of(message, method.makes):  # type: ignore[arg-type]
            self._knows(name)

    def _knows(self, name: str) -> None:
        self._known[name] = None
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def _forgets(self, *names: str) -> None:
        for name in names:
            self._known.pop(name, None)

    # -- what was found

    def _of(self, name: str) -> Comparison:
        if name not in self._comparisons:
            self._comparisons[name] = Comparison(name)
        return self._comparisons[name]

    def report(self) -> list[MethodReport]:
        """The comparison of each method that was called, by name."""
        return [comparison.report() for _, comparison in sorted(self._comparisons.items())]

    async def idle(self) -> None:
        """Wait until all copies that were taken have been made."""
        await self._tasks.wait()

    async def close(self) -> None:
        """Give up the copies that are being made."""
        await self._tasks.cancel()
