"""The chain of an image's layers: layers that are unpacked side by side become snapshots from the lowest to the
topmost.

A layer takes attributes of directories that it does not name from the layers below. These must be *complete* before
that, and committed before the layer is. Commits are made in groups: while one group is under way, further layers become
complete, and are then committed as the next group, since the largest cost of a commit is that of a transaction. While
the first group waits for the disk, a second one begins; a third waits for the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from services.kit import errors, loops

Commit = Callable[[], Awaitable[None]]

_AT_ONCE = 2
"""Groups that may be under way at once."""
_Ready = tuple[Commit | None, asyncio.Future[None]]


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
        self._commits: dict[int, _Ready] = {}
        self._more = asyncio.Event()

    def complete(self, number: int) -> None:
        """Note that the directories of a layer, and of those below it, have their final attributes."""
        if number in self._complete:
            self._complete[number].set()

    async def wait_complete_below(self, number: int) -> None:
        """Return when the layers below a layer are complete."""
        if number - 1 in self._complete:
            await self._complete[number - 1].wait()

    async def wait_committed_below(self, number: int) -> None:
        """Return when all layers below a layer are committed."""
        if number - 1 in self._committed:
            await self._committed[number - 1].wait()

    async def commit(self, number: int, commit: Commit | None) -> None:
        """Let ``commit`` run when it is the layer's turn; None: its snapshot exists. Its errors are raised here. For a
        layer outside the chain, it runs at once.
        """
        if number not in self._committed:
            if commit is not None:
                await commit()
            return
        done = asyncio.get_running_loop().create_future()
        self._commits[number] = commit, done
        self._more.set()
        await done

    async def run(self) -> None:
        """Commit the layers, until all are committed or one cannot be."""
        under_way: list[asyncio.Task[bool]] = []
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
        return ready

    async def _commit(self, ready: Sequence[_Ready], below: asyncio.Task[bool] | None) -> bool:
        """Commit layers at once, while those ``below`` them are under way. False if one failed; its caller gets the
        error.
        """
        alone = len(ready) == 1 and below is None
        results = await asyncio.gather(*(commit() for commit, _ in ready if commit is not None), return_exceptions=True)
        if below is not None and not await below:
            return False
        left = iter(results)
        for commit, done in ready:
            error = next(left) if commit is not None else None
            # perhaps it failed only because the layer below was committed at the second attempt
            if isinstance(error, errors.NodeError) and commit is not None and not alone:
                try:
                    await commit()
                except errors.NodeError as final:
                    error = final
                else:
                    error = None
            if error is not None:
                if not done.done():
                    done.set_exception(error)
                return False
            self._committed[self._next].set()
            self._next += 1
            if not done.done():
                done.set_result(None)
        return True
