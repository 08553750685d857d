"""Forgets the names of what is gone, some in each transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from operator import itemgetter

from services.kit import errors
from services.kit.slices import TURNS, Lane, others, sorting
from services.metadata import schema
from services.metadata.database import Database
from services.metadata.gc.changes import Spared
from services.metadata.gc.tuning import Tuning
from services.metadata.store import Raw
from services.metadata.transactions import Transaction

log = logging.getLogger(__name__)

_name = itemgetter(2)
_ANSWERED = 4 * TURNS
"""Turns of the loop between the end of a sweep and the answer of a call that waits for it."""


class Forgetting:
    """Forgets names of one metadata store, in steps between which others' calls are answered."""

    def __init__(self, database: Database, tuning: Tuning) -> None:
        self._database = database
        self._tuning = tuning
        self._lane = Lane(apart=tuning.apart)

    async def forget(self, gone: Sequence[Raw], spared: Spared) -> None:
        """Forget the names of things that are ``gone`` and not ``spared``."""
        for start in range(0, len(gone), self._tuning.forgotten):
            await self.catch_up(spared)
            await self._database.transactions.write(
                lambda tx, some=gone[start : start + self._tuning.forgotten]: _forget(tx, some, spared),  # type: ignore[misc]
                lasting=False,
            )
            await others()

    async def forget_removed(self, gone: Sequence[Raw], spared: Spared) -> None:
        """The same of things that a sweep removed in a store of ours; no call waits for that. A name that is left,
        after a failure or the end of this process, is a victim of the next sweep, which finds it gone.
        """
        if len(gone) > self._tuning.forgotten:
            await others(_ANSWERED)  # whoever waits for the sweep
        try:
            # by name: neighbours are on the same pages of the database
            await self.forget(await self._lane.through(sorting(gone, _name, self._tuning.step)), spared)
        except errors.NodeError as error:
            log.warning("backend %s: the names of what was removed are still listed: %s", gone[0].backend, error)

    async def catch_up(self, spared: Spared) -> None:
        """Look at written keys, some at a time, until few are left for the next transaction."""
        while spared.backlog > self._tuning.written:
            await self._database.transactions.write(lambda tx: spared.look(tx, self._tuning.written), lasting=False)


def _forget(tx: Transaction, some: Iterable[Raw], spared: Spared) -> None:
    spared.look(tx)
    tx.delete_many([(schema.NAMED.name, *raw) for raw in some if raw not in spared])
