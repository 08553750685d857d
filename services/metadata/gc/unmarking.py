"""Clears the marks of things whose removal is over."""

from __future__ import annotations

import asyncio

from services.kit import loops
from services.kit.faults import fault
from services.metadata import schema
from services.metadata.database import Database
from services.metadata.store import Raw
from services.metadata.transactions import Transaction


class Unmarking:
    """Clears marks while removals go on: all that are waiting, in one transaction."""

    def __init__(self, database: Database, *, forget: bool) -> None:
        """``forget``: the names of things that are gone, too, in the same transaction."""
        self._database = database
        self._forget = forget
        self._waiting: dict[bool, list[Raw]] = {True: [], False: []}
        """By whether they are gone."""
        self._task: asyncio.Task[None] | None = None

    def add(self, *raws: Raw, gone: bool) -> None:
        """Note that the removal of ``raws`` is over; ``gone``: the backend no longer has them."""
        self._waiting[gone].extend(raws)
        if self._task is None or self._task.done():
            # A run that failed is repeated now. Its failure is logged, since a sweep that fails does not await it.
            self._task = loops.aside("the unmarking of victims", self._run())

    async def done(self) -> None:
        """Wait until all marks are cleared."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while any(self._waiting.values()):
            taken, self._waiting = self._waiting, {True: [], False: []}

            def work(tx: Transaction, taken: dict[bool, list[Raw]] = taken) -> None:
                for gone, raws in taken.items():
                    schema.clear_marks(tx, raws, gone=gone and self._forget)

            fault("gc.before-unmark")
            try:
                # a mark that is back is resolved by the next sweep
                await self._database.transactions.write(work, lasting=False)
            except BaseException:
                for gone, raws in taken.items():
                    self._waiting[gone][:0] = raws
                raise
            self._database.wake(*taken[True], *taken[False])
