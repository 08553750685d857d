"""How an intent comes to its end, as :mod:`gateway.store` tells: the raw call is made, or the backend is asked what
became of it, and metadata is told.
"""

from __future__ import annotations

import asyncio
import logging
import time

from gateway.instruments import owed
from gateway.store import Fate, Intent, Outcome, RawCall, Records
from gateway.upstream import Upstream
from services.kit import errors, loops
from services.kit.rpc import Call

log = logging.getLogger(__name__)

_PATIENCE = 600.0
"""Seconds for which a backend that stays away is asked what became of a raw call. After that the intent stays open
until metadata hears of another gateway.
"""
_PAUSE = 1.0
"""Seconds until it is asked again."""


class Intents:
    """Carries out what has begun in ``records``."""

    def __init__(self, records: Records, *, pause: float = _PAUSE) -> None:
        self._records = records
        self._pause = pause
        self._tasks = loops.Tasks()

    async def carry_out(self, intent: Intent, raw: RawCall, backend: Upstream, call: Call) -> Outcome:
        """Make the raw call and finish the intent, or raise what it failed with. Run it shielded.

        Unavailable while the backend stays away: the intent then comes to its end without its caller.
        """
        try:
            await backend.ready()
        except errors.NodeError:  # nothing was asked of it
            await self._records.cancel(call, intent)
            raise
        try:
            outcome = await self._made(raw, backend)
        except errors.NodeError as error:
            if Fate.after(error, there=backend.up) is Fate.NOT_DONE:
                await self._records.cancel(call, intent)
            else:
                self._tasks.start("the end of an intent", self._settle(intent, raw, backend, call))
            raise
        await self._records.finish(call, intent, outcome)
        return outcome

    async def _made(self, raw: RawCall, backend: Upstream) -> Outcome:
        try:
            return await raw.make()
        except (errors.Disconnected, errors.DeadlineExceeded, errors.Cancelled) as error:
            if error.injected:
                raise
            await backend.ready()
            with owed():
                happened = await raw.happened()
            return happened or await raw.make()

    async def _settle(self, intent: Intent, raw: RawCall, backend: Upstream, call: Call) -> None:
        """Ask until the outcome is known, then end the intent. Nobody waits for what was made: it becomes records, and
        the collector's if nobody wants it.
        """
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                await backend.ready()
                with owed():
                    outcome = await raw.happened()
            except errors.NodeError as error:
                log.info("the outcome of an intent on %s is not known yet: %s", backend.name, error)
                await asyncio.sleep(self._pause)
            else:
                break
        else:
            log.warning("the outcome of an intent on %s was not to be known", backend.name)
            return
        try:
            if outcome is None:
                await self._records.cancel(call, intent)
            else:
                await self._records.finish(call, intent, outcome)
        except errors.NodeError as error:  # metadata's answer, or its silence for very long
            log.warning("the end of an intent on %s was not taken: %s", backend.name, error)
