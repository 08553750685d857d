"""The chain of an image's layers: layers that are unpacked side by side become snapshots from the lowest to the
topmost.

A layer takes attributes of directories that it does not name from the layers below. These must be *complete* before
that, and committed before the layer is. Commits are made in groups: while one group is under way, further layers become
complete, and are then committed as the next group, since the largest cost of a commit is that of a transaction. While
the first group waits for the disk, a second one begins; a third waits for the first.

A layer's wait for those below it is a span ``wait.parent``, linked to the span of the layer right below.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.kit import errors, loops, tracing

Commit = Callable[[], Awaitable[None]]

_AT_ONCE = 2
"""Groups that may be under way at once."""
_FOR: dict[str, Any] = {"splitd.wait.for": "the layers below"}


@dataclass(slots=True)
class _Ready:
    """A layer whose commit can run when it is its turn."""

    commit: Commit | None
    done: asyncio.Future[None]
    begun: asyncio.Event
    context: contextvars.Context
    """The caller's: the commit's spans belong to its layer."""
    ended: int = 0
    """When the commit itself ended; its result counts when those below have ended, too."""

    def start(self) -> asyncio.Task[None]:
        """Run the commit."""
        return loops.task("the commit of a layer", self._run(), context=self.context)

    async def _run(self) -> None:
        assert self.commit is not None
        await self.commit()
        self.ended = tracing.now()


class Chain:
    """The layers from ``lowest`` up to, not including, ``end``, by number; those below ``lowest`` exist. :meth:`commit`
    returns only while :meth:`run` runs.
    """

    def __init__(self, lowest: int, end: int) -> None:
        self._next = self._begun = lowest
        """The lowest layer that is not committed, and the lowest whose commit has not begun."""
        self._end = end
        self._complete = {number: asyncio.Event() for number in range(lowest, end)}
        self._committed = {number: asyncio.Event() for number in range(lowest, end)}
        self._shareable = {number: asyncio.Event() for number in range(lowest, end)}
        """Set once the layer below is committed, or sharing has been given up."""
        self._shares = True
        self._commits: dict[int, _Ready] = {}
        self._more = asyncio.Event()
        self._under_way: list[asyncio.Task[bool]] = []
        """The groups whose commits are under way."""
        self._spans: dict[int, str] = {}

    def made_by(self, number: int, span: str) -> None:
        """Note the span that makes a layer, for the traces of those that wait for it."""
        self._spans[number] = span

    def complete(self, number: int) -> None:
        """Note that the directories of a layer, and of those below it, have their final attributes."""
        if number in self._complete:
            self._complete[number].set()

    async def wait_complete_below(self, number: int) -> None:
        """Return when the layers below a layer are complete."""
        await self._wait_below(number, self._complete)

    async def wait_committed_below(self, number: int) -> None:
        """Return when all layers below a layer are committed."""
        await self._wait_below(number, self._committed)

    async def may_share(self, number: int) -> bool:
        """Return True once all layers below a layer are committed: the layer may be there on others, and is asked for
        on these. False, at once, if sharing was given up.
        """
        if not self._shareable[number].is_set():
            with self._waiting(number):
                await self._shareable[number].wait()
        return self._shares

    def share_no_more(self) -> None:
        """Give up sharing: layers that wait for that are better unpacked side by side."""
        self._shares = False
        for each in self._shareable.values():
            each.set()

    async def _wait_below(self, number: int, state: Mapping[int, asyncio.Event]) -> None:
        reached = state.get(number - 1)
        if reached is not None and not reached.is_set():
            with self._waiting(number):
                await reached.wait()

    def _waiting(self, number: int) -> tracing.Span:
        return tracing.wait("parent", self._spans.get(number - 1, ""), **_FOR)

    async def commit(self, number: int, commit: Commit | None) -> None:
        """Let ``commit`` run when it is the layer's turn; None: its snapshot exists. Its errors are raised here. For a
        layer outside the chain, it runs at once.
        """
        if number not in self._committed:
            if commit is not None:
                await commit()
            return
        ready = _Ready(commit, asyncio.get_running_loop().create_future(), asyncio.Event(), contextvars.copy_context())
        self._commits[number] = ready
        self._more.set()
        if number != self._begun or len(self._under_way) == _AT_ONCE:
            with self._waiting(number):
                await ready.begun.wait()
        await ready.done
        if ready.ended:
            tracing.recorded("wait.parent", ready.ended, tracing.now(), self._spans.get(number - 1, ""), **_FOR)

    async def run(self) -> None:
        """Commit the layers, until all are committed or one cannot be."""
        under_way = self._under_way
        try:
            while self._next < self._end:
                await self._more.wait()
                self._more.clear()
                while under_way and under_way[0].done():
                    if not under_way.pop(0).result():
                        return
                while len(under_way) < _AT_ONCE and (ready := self._taken()):
                    under_way.append(
                        loops.task("the commits of layers", self._commit(ready, under_way[-1] if under_way else None))
                    )
                    under_way[-1].add_done_callback(lambda _: self._more.set())
        finally:
            for each in under_way:
                each.cancel()
            if under_way:
                await asyncio.wait(under_way)

    def _taken(self) -> list[_Ready]:
        """The layers whose commits can begin, from the lowest on."""
        end = self._begun
        while end in self._commits:
            end += 1
        ready = [self._commits.pop(number) for number in range(self._begun, end)]
        self._begun = end
        for each in ready:
            each.begun.set()
        return ready

    async def _commit(self, ready: Sequence[_Ready], below: asyncio.Task[bool] | None) -> bool:
        """Commit layers at once, while those ``below`` them are under way. False if one failed; its caller gets the
        error.
        """
        alone = len(ready) == 1 and below is None
        results = await asyncio.gather(
            *(each.start() for each in ready if each.commit is not None), return_exceptions=True
        )
        if below is not None and not await below:
            return False
        left = iter(results)
        for each in ready:
            error = next(left) if each.commit is not None else None
            # perhaps it failed only because the layer below was committed at the second attempt
            if isinstance(error, errors.NodeError) and not alone:
                try:
                    await each.start()
                except errors.NodeError as final:
                    error = final
                else:
                    error = None
            if error is not None:
                if not each.done.done():
                    each.done.set_exception(error)
                return False
            self._committed[self._next].set()
            self._next += 1
            if (above := self._shareable.get(self._next)) is not None:
                above.set()
            if not each.done.done():
                each.done.set_result(None)
        return True
