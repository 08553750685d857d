"""The chain of an image's layers: they are unpacked side by side, and become snapshots from the lowest to the topmost.

What the layers below hold must be *complete* before a layer can get from them what it leaves out; they must be
committed before it is. Commits are made a few at once: while some are under way the next layers become complete, and
are then committed as one, since most of what a commit costs is a transaction's. While the first few wait for the disk a
second few begin; a third wait for the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from services.kit import errors, loops

Commit = Callable[[], Awaitable[None]]

_AT_ONCE = 2
"""How often a few are under way."""
_Ready = tuple[Commit | None, asyncio.Future[None]]


class Chain:
    """The layers from ``lowest`` up to ``end``, by their numbers; what is below is there. :meth:`run` must be
    running for :meth:`commit` to return.
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
        """All directories of a layer are as they will be, and those of the layers below."""
        if number in self._complete:
            self._complete[number].set()

    async def completed_below(self, number: int) -> None:
        """Returns when the layers below a layer are complete."""
        if number - 1 in self._complete:
            await self._complete[number - 1].wait()

    async def reached(self, number: int) -> None:
        """Returns when all layers below a layer are committed."""
        if number - 1 in self._committed:
            await self._committed[number - 1].wait()

    async def commit(self, number: int, commit: Commit | None) -> None:
        """Have ``commit`` run when it is the layer's turn; None: its snapshot is there. Its errors are raised here.
        Where there is no chain, it is run at once.
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
        """Commit the layers, until all are, or one cannot be."""
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
        """Those whose commits can begin, from the lowest on."""
        end = self._begun
        while end in self._commits:
            end += 1
        ready = [self._commits.pop(number) for number in range(self._begun, end)]
        self._begun = end
        return ready

    async def _commit(self, ready: Sequence[_Ready], below: asyncio.Task[bool] | None) -> bool:
        """Commit layers at once, those ``below`` them being under way; False if that failed, and whoever wants it
        was told.
        """
        alone = len(ready) == 1 and below is None
        results = await asyncio.gather(*(commit() for commit, _ in ready if commit is not None), return_exceptions=True)
        if below is not None and not await below:
            return False
        left = iter(results)
        for commit, done in ready:
            error = next(left) if commit is not None else None
            # it may be that the one below had to be asked for twice
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
