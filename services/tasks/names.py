"""Which tasks there are, and whose name is taken by something else: a creation, a deletion, or a doubt.

A name is in ``tasks`` from the moment that a task is made until it is deleted; a task whose shim is dead stays there
until all that it left is cleaned up. Whoever makes a task, ends it, or looks at it for the first time *claims* its name
meanwhile. Claims do not exclude each other: who must not meet another one looks first (:meth:`Names.is_taken`), and
claims without waiting in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from services.kit import errors
from services.tasks.bundle import Bundle
from services.tasks.service import Key
from services.tasks.task import Task

_REMEMBERED = 1.0
"""Seconds for which the container of a task that was here is taken to be there still."""


class DoubtfulError(errors.FailedPrecondition):
    """What became of a task cannot be found out."""


class Doubt:
    """A task that was found at the start, as long as it is not known what has become of it."""

    __slots__ = ("hurried", "tried", "trouble", "trying")

    def __init__(self) -> None:
        self.trouble = ""
        """Why not; empty until it was looked at once."""
        self.trying = False
        """It is being looked at at this moment."""
        self.hurried = asyncio.Event()
        """Set by who wants it looked at at once."""
        self.tried = asyncio.Event()
        """Set when it was looked at once more, and then another one takes its place."""

    def again(self) -> None:
        """It was looked at, with whatever result."""
        tried, self.tried = self.tried, asyncio.Event()
        tried.set()


class Names:
    """By namespace and name."""

    def __init__(self) -> None:
        self.tasks: dict[Key, Task] = {}
        """Those that are known."""
        self.found: dict[Key, Bundle] = {}
        """Those that were found at the start, and of which it is still to be learnt what has become ..."""
        self.doubts: dict[Key, Doubt] = {}
        """... and this in vain so far."""
        self._claims: dict[Key, asyncio.Event] = {}
        """Set when the claim is given up."""
        self._creations: dict[Key, Task | None] = {}
        """The claims that are creations, and what they make, as soon as it has a shim."""
        self._ended: dict[Key, float] = {}
        """When tasks that are no more went; those of the last moments."""

    def is_taken(self, key: Key) -> bool:
        """Whether no task may be made by this name."""
        return key in self.tasks or key in self._claims or key in self.doubts

    def claim(self, key: Key, *, creating: bool = False) -> contextlib.AbstractContextManager[None]:
        """The name is claimed from now until the context that this returns ends."""
        event = self._claims[key] = asyncio.Event()
        if creating:
            self._creations[key] = None

        @contextlib.contextmanager
        def claimed() -> Iterator[None]:
            try:
                yield
            finally:
                if creating:
                    self._creations.pop(key, None)
                if self._claims.get(key) is event:
                    del self._claims[key]
                event.set()

        return claimed()

    def is_made(self, task: Task) -> None:
        """A creation has got as far as to have a shim."""
        self._creations[task.key] = task

    def with_shims(self) -> Iterator[Task]:
        """The tasks that are known, or are being created and have a shim already."""
        yield from self.tasks.values()
        yield from (task for task in self._creations.values() if task is not None)

    async def settled(self, key: Key) -> None:
        """Wait for a claim that may leave the name free."""
        if key not in self.tasks and (claim := self._claims.get(key)) is not None:
            await claim.wait()

    async def look(self, key: Key, seconds: float | None = None) -> Task | None:
        """The task; one that is being created, or was found at the start, is waited for, for at most ``seconds``."""
        if (
            key not in self.tasks
            and (key in self._creations or key in self.found)
            and (claim := self._claims.get(key)) is not None
        ):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await claim.wait()
        return self.tasks.get(key)

    def forget(self, task: Task) -> None:
        """The task is no more."""
        if self.tasks.get(task.key) is task:
            del self.tasks[task.key]
        now = time.monotonic()
        for key in [k for k, at in self._ended.items() if at < now - _REMEMBERED]:
            del self._ended[key]
        self._ended[task.key] = now

    def has_just_ended(self, key: Key) -> bool:
        """Whether a task of this name was here a moment ago."""
        return self._ended.get(key, -_REMEMBERED) >= time.monotonic() - _REMEMBERED
