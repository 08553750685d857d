"""The names of the tasks that are known, and the names that are taken by a creation, a deletion or a doubt.

A task is in ``tasks`` from its creation to its deletion. If its shim is dead it stays there until the burial is done.
The code that creates, ends, buries or first loads a task *claims* its name meanwhile. Claims do not exclude each other:
``create``, which must not meet another claim, looks first (:meth:`Names.is_taken`), and does not wait before it claims.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from services.kit import errors, tracing
from services.tasks.bundle import Bundle
from services.tasks.service import Key
from services.tasks.task import Task

_REMEMBERED = 1.0
"""Seconds after the end of a task in which its container is assumed to exist still."""


class DoubtfulError(errors.FailedPrecondition):
    """It cannot be found out what became of a task."""


class Doubt:
    """A task that was found at the start, until it is known what became of it."""

    __slots__ = ("hurried", "tried", "trouble", "trying")

    def __init__(self) -> None:
        self.trouble = ""
        """Why the last try failed; empty before."""
        self.trying = False
        """A try runs at this moment."""
        self.hurried = asyncio.Event()
        """Set to have the next try made at once."""
        self.tried = asyncio.Event()
        """Set, and replaced, after each try."""

    def again(self) -> None:
        """A try has ended, with whatever result."""
        tried, self.tried = self.tried, asyncio.Event()
        tried.set()


class Claim:
    """Work on a name."""

    __slots__ = ("over", "ref", "wanted", "work")

    def __init__(self, work: str, ref: str) -> None:
        self.work = work
        """``creation`` or ``end``."""
        self.ref = ref
        """The span that does the work."""
        self.over = asyncio.Event()
        """Set when the work is done."""
        self.wanted = asyncio.Event()
        """Set when somebody waits for that."""

    async def ended(self, key: Key) -> None:
        """Wait for the end of the work."""
        self.wanted.set()
        with tracing.wait("lock", self.ref, **{"splitd.wait.for": f"the {self.work} of task {key[1]}"}):
            await self.over.wait()


class Names:
    """The names of one service's tasks."""

    def __init__(self) -> None:
        self.tasks: dict[Key, Task] = {}
        """The tasks that are known."""
        self.found: dict[Key, Bundle] = {}
        """The bundles that were found at the start, until it is known what became of their tasks."""
        self.doubts: dict[Key, Doubt] = {}
        """Those of them for which a try has failed."""
        self._claims: dict[Key, Claim] = {}
        self._creations: dict[Key, Task | None] = {}
        """The claims that are creations, with their tasks once these have a shim."""
        self._ended: dict[Key, float] = {}
        """When the tasks that ended a moment ago did, by the monotonic clock."""

    def is_taken(self, key: Key) -> bool:
        """Return whether no task of this name may be created."""
        return key in self.tasks or key in self._claims or key in self.doubts

    def claim(self, key: Key, *, creating: bool = False) -> contextlib.AbstractContextManager[Claim]:
        """Claim the name from now until the end of the returned context."""
        claim = self._claims[key] = Claim("creation" if creating else "end", tracing.current().ref())
        if creating:
            self._creations[key] = None

        @contextlib.contextmanager
        def claimed() -> Iterator[Claim]:
            try:
                yield claim
            finally:
                if creating:
                    self._creations.pop(key, None)
                if self._claims.get(key) is claim:
                    del self._claims[key]
                claim.over.set()

        return claimed()

    def is_made(self, task: Task) -> None:
        """The task of a creation has a shim now."""
        self._creations[task.key] = task

    def with_shims(self) -> Iterator[Task]:
        """The tasks that are known, and those that are being created and have a shim already."""
        yield from self.tasks.values()
        yield from (task for task in self._creations.values() if task is not None)

    async def settled(self, key: Key) -> None:
        """Wait for the claims that may leave the name free when they end."""
        while key not in self.tasks and (claim := self._claims.get(key)) is not None:
            await claim.ended(key)

    async def look(self, key: Key, seconds: float | None = None) -> Task | None:
        """The task, or None. Wait at most ``seconds`` for one that is being created or loaded."""
        if (
            key not in self.tasks
            and (key in self._creations or key in self.found)
            and (claim := self._claims.get(key)) is not None
        ):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await claim.ended(key)
        return self.tasks.get(key)

    def forget(self, task: Task) -> None:
        """Remove a task that has ended."""
        if self.tasks.get(task.key) is task:
            del self.tasks[task.key]
        now = time.monotonic()
        for key in [k for k, at in self._ended.items() if at < now - _REMEMBERED]:
            del self._ended[key]
        self._ended[task.key] = now

    def has_just_ended(self, key: Key) -> bool:
        """Return whether a task of this name ended a moment ago, or is about to."""
        return key in self._claims or self._ended.get(key, -_REMEMBERED) >= time.monotonic() - _REMEMBERED
